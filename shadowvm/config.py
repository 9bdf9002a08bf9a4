"""Configuration of a run, checked once and then frozen.

Sizes are bytes. `parse_size` reads them as QEMU's -m does: a bare number is MiB, suffixes are K, M, G, T.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from math import prod

from .addr import PAGE_SIZE
from .errors import ConfigError
from .params import DEFAULT_PARAMS, KvmParams

MIB = 1 << 20
MIN_HOST_MEMORY = 2 * MIB
"""Smallest host for one vCPU: watermarks, page tables, 64 shadow pages and room to make progress."""
VCPU_HOST_MEMORY = 128 << 10
"""What every further vCPU needs: roots, and the shadow pages that it keeps at hand."""
MAX_VCPUS = 16
DEFAULT_QUANTUM = 10_000
MAX_QUANTUM = 1_000_000_000
MIN_GUEST_MEMORY = 1 * MIB
MMUS = ("shadow", "tdp")
THP = ("never", "madvise", "always")
MAX_GUEST_MEMORY = 512 << 30

_SMP_KEYS = ("cpus", "maxcpus", "sockets", "dies", "clusters", "cores", "threads")
_NS = {"ns": 1, "us": 1000, "ms": 1_000_000}
_UNITS = {"": MIB, "K": 1 << 10, "M": MIB, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str, what: str) -> int:
    """Bytes of a size such as `64M`; ConfigError names `what` it was given for."""
    match = re.fullmatch(r"([0-9]{1,15})([kKmMgGtT]?)", text)
    if match is None:
        raise ConfigError(f"{what}: '{text}' is no size (use a number and K, M, G or T; a bare number is MiB)")
    return int(match[1]) * _UNITS[match[2].upper()]


def parse_smp(text: str) -> int:
    """The number of CPUs that QEMU's -smp asks for: `N` or `cpus=N`, and a topology that comes to as many."""
    given: dict[str, int] = {}
    for index, part in enumerate(text.split(",")):
        key, equals, value = part.partition("=")
        if index == 0 and not equals:
            key, value = "cpus", part
        if key not in _SMP_KEYS or not re.fullmatch("[0-9]{1,5}", value, re.ASCII):
            raise ConfigError(f"-smp: '{part}' is neither a number of CPUs nor one of {'=, '.join(_SMP_KEYS)}=")
        given[key] = int(value)
    product = prod(count for key, count in given.items() if key not in ("cpus", "maxcpus"))
    cpus = given.get("cpus", product)
    total = given.get("maxcpus", cpus)
    if product not in (1, total) or total < cpus:
        raise ConfigError(f"-smp: '{text}' does not come out: {cpus} CPUs of {total}, in a topology of {product}")
    return cpus


def parse_quantum(text: str) -> tuple[int, int]:
    """`N`, or `MIN-MAX` for turns of random length: (shortest, longest) in instructions."""
    match = re.fullmatch(r"([0-9]{1,12})(?:-([0-9]{1,12}))?", text, re.ASCII)
    if match is None:
        raise ConfigError(f"--quantum: '{text}' is neither a number of instructions nor a range MIN-MAX")
    return int(match[1]), int(match[2] or match[1])


def parse_time(text: str, what: str) -> int:
    """Nanoseconds of a time such as `50us`, below one second; ConfigError names `what` it was given for."""
    match = re.fullmatch(r"([0-9]{1,9})(ns|us|ms)?", text, re.ASCII)
    ns = int(match[1]) * _NS[match[2] or "ns"] if match is not None else -1
    if not 0 <= ns < 1_000_000_000:
        raise ConfigError(f"{what}: '{text}' is no time below a second (use a number and ns, us or ms)")
    return ns


def parse_poison(text: str) -> tuple[int, int]:
    """`GPA@TIME`: (gpa, ns)."""
    match = re.fullmatch(r"(0x[0-9a-fA-F]{1,13}|[0-9]{1,15})@(.*)", text, re.ASCII)
    if match is None:
        raise ConfigError(f"--poison: '{text}' is not an address and a time, such as 0x400000@1ms")
    return int(match[1], 0), parse_time(match[2], "--poison")


def format_size(size: int) -> str:
    """A size in the largest unit that divides it."""
    for unit in "TGMK":
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return f"{size} bytes"


@dataclass(frozen=True)
class MachineConfig:
    """One machine: a guest image, its memory, and the host under it.

    image: path of an ELF64 or a Multiboot kernel; None with bios alone. initrd: its modules, as QEMU's flag. bios: path
    of a firmware, which then starts from the reset vector. load_address: gpa of an image without headers. swap: bytes,
    0 for none; None for as much as the guest has. swap_file: file to create, or directory; None for the temporary
    directory. swap_latency: virtual time in ns that a read from swap takes. poison: (gpa, ns) of each frame that fails,
    and when. seed: 0 is the fixed order of tasks, others
    preempt at random points. timeout_instructions: of all CPUs together, 0 for no limit. icount: count instructions,
    which virtual time and several CPUs need. cpu: model and features, as QEMU's flag. serial_input: file whose bytes
    COM1 receives. smp: CPUs. quantum: shortest and longest turn of a CPU in instructions; lengths between are drawn
    with `seed`. mmu: one of MMUS. kvm_params: KVM's knobs. thp: one of THP, where the host uses huge pages; the VMM
    asks for them.
    """

    image: str | None
    name: str = ""
    memory: int = 64 * MIB
    host_memory: int = 16 * MIB
    swap: int | None = None
    swap_file: str | None = None
    swap_latency: int = 0
    poison: tuple[tuple[int, int], ...] = ()
    append: str = ""
    initrd: str = ""
    bios: str | None = None
    load_address: int | None = None
    cpu: str = "max"
    seed: int = 0
    timeout_instructions: int = 0
    icount: bool = True
    serial_input: str | None = None
    smp: int = 1
    quantum: tuple[int, int] = (DEFAULT_QUANTUM, DEFAULT_QUANTUM)
    mmu: str = "shadow"
    kvm_params: KvmParams = DEFAULT_PARAMS
    thp: str = "never"

    @property
    def min_host_memory(self) -> int:
        """Bytes of the smallest host that so many CPUs can run on."""
        return MIN_HOST_MEMORY + VCPU_HOST_MEMORY * (self.smp - 1)

    @property
    def swap_size(self) -> int:
        """Bytes of swap."""
        return self.memory if self.swap is None else self.swap

    def validate(self) -> None:
        """ConfigError for sizes that cannot work."""
        if not MIN_GUEST_MEMORY <= self.memory <= MAX_GUEST_MEMORY or self.memory % PAGE_SIZE:
            limits = f"{format_size(MIN_GUEST_MEMORY)} to {format_size(MAX_GUEST_MEMORY)}, in whole pages"
            raise ConfigError(f"-m: {format_size(self.memory)} of guest memory is out of range ({limits})")
        if self.mmu not in MMUS:
            raise ConfigError(f"--mmu: '{self.mmu}' is none of {', '.join(MMUS)}")
        if self.thp not in THP:
            raise ConfigError(f"--thp: '{self.thp}' is none of {', '.join(THP)}")
        if not 1 <= self.smp <= MAX_VCPUS:
            raise ConfigError(f"-smp: {self.smp} CPUs are out of range (1 to {MAX_VCPUS})")
        if self.host_memory < self.min_host_memory:
            given, least = format_size(self.host_memory), format_size(self.min_host_memory)
            cpus = f" for {self.smp} CPUs" if self.smp > 1 else ""
            raise ConfigError(f"--host-memory: {given} is below the minimum of {least}{cpus}")
        if self.host_memory > _physical_memory() or self.host_memory % PAGE_SIZE:
            raise ConfigError(
                f"--host-memory: {format_size(self.host_memory)} is more than this machine has, or no whole pages"
            )
        if self.swap_size > MAX_GUEST_MEMORY:
            raise ConfigError(f"--swap: {format_size(self.swap_size)} is more than {format_size(MAX_GUEST_MEMORY)}")
        if self.swap_size % PAGE_SIZE:
            raise ConfigError(f"--swap: {format_size(self.swap_size)} is not a whole number of pages")
        if self.timeout_instructions and not self.icount:
            raise ConfigError("--timeout-instructions needs instruction counting: drop -icount off")
        if self.swap_latency and not self.icount:
            raise ConfigError("--swap-latency passes in instructions: drop -icount off")
        if self.poison and not self.icount:
            raise ConfigError("--poison: virtual time passes in instructions: drop -icount off")
        if self.smp > 1 and not self.icount:
            raise ConfigError("-smp: several CPUs take turns by instructions: drop -icount off")
        if not 1 <= self.quantum[0] <= self.quantum[1] <= MAX_QUANTUM:
            shortest, longest = self.quantum
            raise ConfigError(f"--quantum: {shortest}-{longest} is out of order or range (1 to {MAX_QUANTUM})")


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
