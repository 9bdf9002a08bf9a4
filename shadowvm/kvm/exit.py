"""Why KVM_RUN returned (include/uapi/linux/kvm.h)."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from ..addr import Gpa


class ExitReason(IntEnum):
    """KVM_EXIT_*, with their numbers."""

    UNKNOWN = 0
    IO = 2
    DEBUG = 4
    HLT = 5
    MMIO = 6
    SHUTDOWN = 8
    INTR = 10
    INTERNAL_ERROR = 17
    SYSTEM_EVENT = 24
    MEMORY_FAULT = 39


class MmioRun(NamedTuple):
    """The access of KVM_EXIT_MMIO: what was stored there, or how much is to be loaded from there."""

    phys_addr: Gpa
    data: bytes
    len: int
    is_write: bool


class KvmRun(NamedTuple):
    """The outcome of one Vcpu.run(). INTR: the instruction limit; SYSTEM_EVENT: a device ended the run.

    `errno` is negative when the host failed (-ENOMEM: no memory and no swap left), else 0. `mmio`: of MMIO.
    """

    exit_reason: ExitReason
    text: str = ""
    errno: int = 0
    mmio: MmioRun | None = None
