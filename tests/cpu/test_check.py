"""An unknown build of Unicorn is refused with one line, before anything is patched."""

from __future__ import annotations

import pytest

from shadowvm.cpu import check, layout, selftest, setup
from shadowvm.cpu.library import library
from shadowvm.cpu.unicorn_engine import UnicornEngine
from shadowvm.errors import ConfigError
from shadowvm.phys import Ram


@pytest.mark.parametrize("name", ["ENV_EIP", "ENV_CR", "ENV_GDT", "ENV_TR", "ENV_LSTAR", "CPU_UC", "TLB_FAST"])
def test_an_offset_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(layout, name, getattr(layout, name) + 8)
    with pytest.raises(ConfigError, match=r"^this build of Unicorn 2\.1\.4 is not known: [a-z0-9]+"):
        UnicornEngine(Ram(1 << 16))


def test_a_function_that_the_cpu_class_does_not_hold_is_refused() -> None:
    uc, cpu = setup.open_unicorn(library(), Ram(1 << 16))
    with pytest.raises(ConfigError, match="CPUClass"):
        check.class_slot(library(), cpu, "tlb_flush")
    library().uc_close(uc)


def test_the_self_test_notices_a_wrong_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "COUNT_AT_FAULT", 7)
    with pytest.raises(ConfigError, match="self-test: fault"):
        selftest.require(UnicornEngine)


def test_cpuid_denies_rdrand_and_rdseed() -> None:
    engine = UnicornEngine(Ram(1 << 16))
    lib, env = library(), engine._env_address
    assert not setup.cpuid(lib, env, 1, 0)[2] >> 30 & 1
    assert not setup.cpuid(lib, env, 7, 0)[1] >> 18 & 1
    assert setup.cpuid(lib, env, 7, 0)[1] >> 7 & 1, "SMEP stays"
