"""KVM's knobs, under KVM's names: module parameters of kvm, kvm_intel and kvm_amd, and switches of our own.

A mechanism that KVM cannot turn off has a switch here all the same, so that a run shows what it is worth; its text
begins with `ours`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from .errors import ConfigError


def _knob(default: int, text: str, most: int = 1) -> int:
    return field(default=default, metadata={"text": text, "most": most})


@dataclass(frozen=True)
class KvmParams:
    """Values of all knobs; a switch is 0 or 1."""

    tdp_mmu: int = _knob(1, "with --mmu tdp: the TDP MMU; 0: direct shadow pages with an rmap")
    mmio_caching: int = _knob(1, "MMIO sptes remember where no memory is")
    eptad: int = _knob(1, "Accessed and Dirty bits in sptes; 0: accesses are tracked by faults")
    pml: int = _knob(0, "with --mmu tdp: dirty logging by D bits instead of write protection")
    nx_huge_pages: int = _knob(0, "never execute from a large spte: split it")
    nx_huge_pages_recovery_ratio: int = _knob(60, "one pass zaps 1/N of what nx_huge_pages has split", 1 << 20)
    nx_huge_pages_recovery_period_ms: int = _knob(0, "virtual time between two passes, 0 for an hour/ratio", 1 << 32)
    eager_page_split: int = _knob(1, "enabling the dirty log splits large sptes at once")
    flush_on_reuse: int = _knob(0, "flush and sync whenever a kept root is used again")
    slot_zap_all: int = _knob(1, "deleting a slot zaps everything (KVM_X86_QUIRK_SLOT_ZAP_ALL)")
    nr_mmu_pages: int = _knob(0, "limit of shadow pages (KVM_SET_NR_MMU_PAGES), 0 for KVM's choice", 1 << 32)
    async_pf: int = _knob(1, "offer asynchronous page faults to the guest, and halt for I/O while others can run")
    unsync: int = _knob(1, "ours: the guest may write its leaf tables, which are synced at a flush")
    prefetch: int = _knob(1, "ours: a fault maps resident neighbours too")
    fast_page_fault: int = _knob(1, "ours: faults that need no mmu_lock take none")
    large_pages: int = _knob(1, "ours: large sptes where guest and host have large pages")
    unprotect_retry: int = _knob(1, "ours: unshadow a page that is written as data, instead of emulating")


DEFAULT_PARAMS = KvmParams()


def kvm_params() -> dict[str, str]:
    """Every knob by name, with its default and what it does."""
    return {each.name: f"{each.default}  {each.metadata['text']}" for each in fields(KvmParams)}


def parse_kvm_params(texts: list[str]) -> KvmParams:
    """`NAME=VALUE,...` of every --kvm-param; a later one wins. Switches also take Y and N, as modprobe does.

    Raises:
        ConfigError: no such knob, or no such value.
    """
    most = {each.name: each.metadata["most"] for each in fields(KvmParams)}
    values: dict[str, int] = {}
    for part in ",".join(texts).split(",") if texts else ():
        name, _, text = part.partition("=")
        name = name.strip().removeprefix("kvm.").removeprefix("kvm_intel.").removeprefix("kvm_amd.")
        if name not in most:
            raise ConfigError(f"--kvm-param: '{part}' names no parameter of KVM ({', '.join(most)})")
        value = {"Y": 1, "y": 1, "N": 0, "n": 0}.get(text)
        if value is None and text.isascii() and text.isdecimal() and len(text) <= 12:
            value = int(text)
        if value is None or value > most[name]:
            raise ConfigError(f"--kvm-param: '{part}': {name} takes 0 to {most[name]}")
        values[name] = value
    return KvmParams(**values)
