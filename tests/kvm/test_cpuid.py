from __future__ import annotations

import pytest

from shadowvm.errors import ConfigError
from shadowvm.kvm.cpuid import CpuModel, cpuid, parse_cpu_model
from shadowvm.x86 import CR4_PKE


def leaf(model: CpuModel, number: int, subleaf: int = 0, *, cr4: int = 0, apic_id: int = 0) -> tuple[int, ...]:
    return cpuid(model, apic_id, cr4, True, number, subleaf)


def test_a_model_offers_its_features_and_no_others() -> None:
    model = parse_cpu_model("qemu64")
    assert model.has("sse2")
    assert not model.has("smep")
    assert not leaf(model, 7)[1] & 1 << 7


def test_flags_add_and_remove_features() -> None:
    model = parse_cpu_model("qemu64,+smep,-sse2,smap=on,nx=off")
    assert leaf(model, 7)[1] == 1 << 7 | 1 << 20
    assert not leaf(model, 1)[3] & 1 << 26
    assert not leaf(model, 0x8000_0001)[3] & 1 << 20


@pytest.mark.parametrize("text", ["pentium9", "max,+avx512", "max,sse2", "max,+", "", "max,+rdrand", "max,+pcid"])
def test_what_does_not_exist_or_work_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_cpu_model(text)
    assert str(error.value).startswith("-cpu: ")
    assert "\n" not in str(error.value)


def test_dynamic_bits_follow_cr4() -> None:
    model = parse_cpu_model("max")
    assert not leaf(model, 1)[2] & 1 << 27
    assert leaf(model, 1, cr4=1 << 18)[2] & 1 << 27
    assert not leaf(model, 7)[2] & 1 << 4
    assert leaf(model, 7, cr4=CR4_PKE)[2] & 1 << 4


def test_a_switched_off_apic_is_not_shown() -> None:
    model = parse_cpu_model("max")
    assert cpuid(model, 0, 0, True, 1, 0).edx & 1 << 9
    assert not cpuid(model, 0, 0, False, 1, 0).edx & 1 << 9


def test_apic_id_and_topology() -> None:
    model = parse_cpu_model("max", ncpus=3)
    assert leaf(model, 1, apic_id=2)[1] >> 24 == 2
    assert leaf(model, 0xB, 1, apic_id=2) == (2, 3, 0x201, 2)


def test_leaf_above_the_highest_answers_as_the_highest() -> None:
    model = parse_cpu_model("max")
    assert leaf(model, 0x1234) == leaf(model, 0x15) == (1, 1, 10**9, 0)
    assert leaf(model, 0x8000_0099) == (0, 0, 0, 0)


def test_address_sizes_follow_la57() -> None:
    assert leaf(parse_cpu_model("max"), 0x8000_0008)[0] == 57 << 8 | 40
    assert leaf(parse_cpu_model("max,-la57"), 0x8000_0008)[0] == 48 << 8 | 40


def test_vendor_and_brand_are_text() -> None:
    _, ebx, ecx, edx = leaf(parse_cpu_model("max"), 0)
    assert b"".join(word.to_bytes(4, "little") for word in (ebx, edx, ecx)) == b"GenuineIntel"
    brand = b"".join(
        word.to_bytes(4, "little") for n in (2, 3, 4) for word in leaf(parse_cpu_model("max"), 0x8000_0000 + n)
    )
    assert brand.rstrip(b"\0") == b"shadowvm CPU (max)"
