"""CPUID: what the CPU says it can do, by model and by `+feature,-feature` (arch/x86/kvm/cpuid.c; SDM vol. 2, CPUID).

A feature is offered only if it works here; the names are QEMU's. Asking for one that does not exist or does not
work is a ConfigError.
"""

from __future__ import annotations

from typing import NamedTuple

from ..errors import ConfigError
from ..x86 import CR4_PKE

VENDOR = b"GenuineIntel"
HYPERVISOR_SIGNATURE, KVM_SIGNATURE = b"shadowvm\0\0\0\0", b"KVMKVMKVM\0\0\0"
"""Without and with the feature `kvm`, by which a guest is told that it may use KVM's own MSRs."""
SIGNATURE = 0x000806A6
"""Family 6, model 0x6a, stepping 6."""
PHYS_BITS = 40
CR4_OSXSAVE = 1 << 18
XCR0_X87_SSE = 3
XSAVE_SIZE = 0x240

F_1_EDX, F_1_ECX, F_7_EBX, F_7_ECX, F_81_EDX, F_81_ECX, F_KVM_EAX, F_KVM = range(8)

FEATURES: dict[str, tuple[int, int]] = {
    **{
        name: (F_1_EDX, bit)
        for name, bit in {
            "fpu": 0, "de": 2, "pse": 3, "tsc": 4, "msr": 5, "pae": 6, "mce": 7, "cx8": 8, "apic": 9, "sep": 11,
            "mtrr": 12, "pge": 13, "mca": 14, "cmov": 15, "pat": 16, "pse36": 17, "clflush": 19, "mmx": 23,
            "fxsr": 24, "sse": 25, "sse2": 26,
        }.items()
    },
    **{
        name: (F_1_ECX, bit)
        for name, bit in {
            "pni": 0, "pclmulqdq": 1, "ssse3": 9, "cx16": 13, "sse4.1": 19, "sse4.2": 20, "x2apic": 21, "movbe": 22,
            "popcnt": 23, "tsc-deadline": 24, "aes": 25, "xsave": 26, "hypervisor": 31,
        }.items()
    },
    **{
        name: (F_7_EBX, bit)
        for name, bit in {
            "fsgsbase": 0, "bmi1": 3, "smep": 7, "bmi2": 8, "erms": 9, "adx": 19, "smap": 20, "clflushopt": 23,
            "clwb": 24,
        }.items()
    },
    "pku": (F_7_ECX, 3),
    "la57": (F_7_ECX, 16),
    **{
        name: (F_81_EDX, bit)
        for name, bit in {"syscall": 11, "nx": 20, "pdpe1gb": 26, "rdtscp": 27, "lm": 29}.items()
    },
    "kvm-asyncpf": (F_KVM_EAX, 4),
    "kvm-asyncpf-int": (F_KVM_EAX, 14),
    "kvm": (F_KVM, 0),
    "lahf-lm": (F_81_ECX, 0),
    "abm": (F_81_ECX, 5),
}  # fmt: skip
"""QEMU's name of every feature that works -> (register, bit)."""

_BASE = (
    "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 pni cx16 "
    "hypervisor syscall nx lm lahf-lm kvm kvm-asyncpf kvm-asyncpf-int"
).split()
MODELS: dict[str, list[str]] = {
    "max": list(FEATURES),
    "qemu64": _BASE,
    "Nehalem": [*_BASE, "ssse3", "sse4.1", "sse4.2", "popcnt"],
    "Haswell": [
        *_BASE,
        *"pclmulqdq ssse3 sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes xsave".split(),
        *"fsgsbase bmi1 smep bmi2 erms rdtscp abm".split(),
    ],
    "Icelake-Server": list(FEATURES),
}
"""Models by QEMU's names, less what does not work here (AVX, PCID, RDRAND and the like)."""


class CpuidResult(NamedTuple):
    """What the instruction leaves in EAX, EBX, ECX, EDX."""

    eax: int
    ebx: int
    ecx: int
    edx: int


class CpuModel:
    """The features of one machine's CPUs, as register values in the order F_1_EDX ... F_KVM."""

    __slots__ = ("features", "name", "ncpus")

    def __init__(self, name: str, features: set[str], ncpus: int = 1) -> None:
        self.name = name
        self.ncpus = ncpus
        self.features = [0] * 8
        for feature in features:
            register, bit = FEATURES[feature]
            self.features[register] |= 1 << bit

    def has(self, feature: str) -> bool:
        """Whether a feature is offered."""
        register, bit = FEATURES[feature]
        return bool(self.features[register] >> bit & 1)

    def drop(self, *features: str) -> None:
        """Offer these no longer."""
        for feature in features:
            register, bit = FEATURES[feature]
            self.features[register] &= ~(1 << bit)

    def has_kvm_feature(self, feature: str) -> bool:
        """Whether a feature of leaf 0x40000001 is offered."""
        return self.has("kvm") and self.has(feature)


def parse_cpu_model(text: str, ncpus: int = 1) -> CpuModel:
    """`MODEL[,+feature][,-feature][,feature=on|off]...` as QEMU's -cpu. ConfigError for what is unknown."""
    name, *flags = text.split(",")
    if name not in MODELS:
        raise ConfigError(f"-cpu: unknown model '{name}' (known: {', '.join(MODELS)})")
    features = set(MODELS[name])
    for flag in flags:
        feature, on = _parse_flag(flag)
        if feature not in FEATURES:
            raise ConfigError(f"-cpu: no feature '{feature}' (known: {', '.join(sorted(FEATURES))})")
        if on:
            features.add(feature)
        else:
            features.discard(feature)
    return CpuModel(name, features, ncpus)


def _parse_flag(flag: str) -> tuple[str, bool]:
    if flag[:1] in ("+", "-"):
        return flag[1:], flag[0] == "+"
    feature, separator, value = flag.partition("=")
    if separator and value in ("on", "off"):
        return feature, value == "on"
    raise ConfigError(f"-cpu: '{flag}' is neither +feature, -feature nor feature=on|off")


def cpuid(model: CpuModel, apic_id: int, cr4: int, apic_enabled: bool, leaf: int, subleaf: int) -> CpuidResult:
    """The answer of CPU `apic_id`. A leaf above the highest basic one answers as that one, as Intel's do."""
    if leaf >= 0x8000_0000:
        return _extended(model, leaf)
    if leaf & ~1 == 0x4000_0000:
        return _hypervisor(model, leaf)
    return _basic(model, apic_id, cr4, apic_enabled, min(leaf, 0x15), subleaf)


def _basic(model: CpuModel, apic_id: int, cr4: int, apic_enabled: bool, leaf: int, subleaf: int) -> CpuidResult:
    words = [int.from_bytes(VENDOR[at : at + 4], "little") for at in (0, 4, 8)]
    if leaf == 0:
        return CpuidResult(0x15, words[0], words[2], words[1])
    if leaf == 1:
        edx, ecx = model.features[F_1_EDX], model.features[F_1_ECX]
        if model.ncpus > 1:
            edx |= 1 << 28
        if not apic_enabled:
            edx &= ~(1 << 9)
        if cr4 & CR4_OSXSAVE and model.has("xsave"):
            ecx |= 1 << 27
        return CpuidResult(SIGNATURE, apic_id << 24 | model.ncpus << 16 | 8 << 8, ecx, edx)
    if leaf == 7 and subleaf == 0:
        ospke = 1 << 4 if cr4 & CR4_PKE else 0
        return CpuidResult(0, model.features[F_7_EBX], model.features[F_7_ECX] | ospke, 0)
    if leaf == 0xB:
        return _topology(model, apic_id, subleaf)
    if leaf == 0xD and model.has("xsave"):
        return _xsave(subleaf)
    if leaf == 0x15:
        return CpuidResult(1, 1, 1_000_000_000, 0)
    return CpuidResult(0, 0, 0, 0)


def _hypervisor(model: CpuModel, leaf: int) -> CpuidResult:
    """Leaves 0x40000000 and 0x40000001 (Documentation/virt/kvm/x86/cpuid.rst)."""
    if leaf & 1:
        return CpuidResult(model.features[F_KVM_EAX] if model.has("kvm") else 0, 0, 0, 0)
    signature, highest = (KVM_SIGNATURE, leaf + 1) if model.has("kvm") else (HYPERVISOR_SIGNATURE, leaf)
    words = [int.from_bytes(signature[at : at + 4], "little") for at in (0, 4, 8)]
    return CpuidResult(highest, words[0], words[1], words[2])


def _topology(model: CpuModel, apic_id: int, subleaf: int) -> CpuidResult:
    """One thread a core; all cores in one package."""
    core_bits = (model.ncpus - 1).bit_length()
    if subleaf == 0:
        return CpuidResult(0, 1, 0x100, apic_id)
    if subleaf == 1:
        return CpuidResult(core_bits, model.ncpus, 0x201, apic_id)
    return CpuidResult(0, 0, subleaf, apic_id)


def _xsave(subleaf: int) -> CpuidResult:
    if subleaf == 0:
        return CpuidResult(XCR0_X87_SSE, XSAVE_SIZE, XSAVE_SIZE, 0)
    return CpuidResult(1 if subleaf == 1 else 0, 0, 0, 0)


def _extended(model: CpuModel, leaf: int) -> CpuidResult:
    if leaf == 0x8000_0000:
        return CpuidResult(0x8000_0008, 0, 0, 0)
    if leaf == 0x8000_0001:
        return CpuidResult(0, 0, model.features[F_81_ECX], model.features[F_81_EDX])
    if 0x8000_0002 <= leaf <= 0x8000_0004:
        brand = f"shadowvm CPU ({model.name})".encode().ljust(48, b"\0")
        part = brand[16 * (leaf - 0x8000_0002) :][:16]
        return CpuidResult(*(int.from_bytes(part[at : at + 4], "little") for at in (0, 4, 8, 12)))
    if leaf == 0x8000_0007:
        return CpuidResult(0, 0, 0, 1 << 8)
    if leaf == 0x8000_0008:
        return CpuidResult(PHYS_BITS | (57 if model.has("la57") else 48) << 8, 0, 0, 0)
    return CpuidResult(0, 0, 0, 0)
