"""Why KVM_RUN returned (include/uapi/linux/kvm.h)."""

from __future__ import annotations

from dataclasses import dataclass
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
    DIRTY_RING_FULL = 31
    MEMORY_FAULT = 39


class InternalError(IntEnum):
    """KVM_INTERNAL_ERROR_*, kvm_run.internal.suberror."""

    EMULATION = 1
    SIMUL_EX = 2
    DELIVERY_EV = 3
    UNEXPECTED_EXIT_REASON = 4


@dataclass(slots=True)
class KvmIo:
    """kvm_run.io: a port was written, or is read; then user space puts the answer into `data`."""

    port: int
    size: int
    is_write: bool
    data: int


@dataclass(slots=True)
class KvmMmio:
    """kvm_run.mmio: a store, or a load that waits for `data`, where no memory is."""

    phys_addr: Gpa
    len: int
    is_write: bool
    data: int


class KvmRun(NamedTuple):
    """The outcome of one Vcpu.run(). INTR: the instruction limit; SYSTEM_EVENT: a device ended the run.

    `errno` is negative when the host failed (-ENOMEM: no memory and no swap left), else 0. `io`, `mmio`: what the guest
    asks of user space, if that is what answers its ports. `suberror`: of an INTERNAL_ERROR that KVM has a number for.
    """

    exit_reason: ExitReason
    text: str = ""
    errno: int = 0
    io: KvmIo | None = None
    mmio: KvmMmio | None = None
    suberror: InternalError | None = None
