from __future__ import annotations

import pytest

from shadowvm.cli.main import main
from shadowvm.errors import ConfigError
from shadowvm.params import KvmParams, kvm_params, parse_kvm_params


def test_knobs_are_set_by_name_and_a_later_one_wins() -> None:
    params = parse_kvm_params(["tdp_mmu=0,mmio_caching=N", "nx_huge_pages=1,tdp_mmu=Y", "kvm_intel.eptad=0"])
    assert params == KvmParams(mmio_caching=0, nx_huge_pages=1, eptad=0)
    assert parse_kvm_params([]) == KvmParams()


@pytest.mark.parametrize("text", ["", "tdp_mmu", "tdp_mmu=2", "tdp_mmu=-1", "ept=1", "tdp_mmu=0,,", "nr_mmu_pages=²"])
def test_unknown_knobs_and_values_are_refused_with_their_text(text: str) -> None:
    with pytest.raises(ConfigError, match="--kvm-param: '"):
        parse_kvm_params([text])


def test_every_knob_has_a_description() -> None:
    assert all(len(text) > 10 for text in kvm_params().values())


def test_help_lists_every_knob_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--kvm-param", "help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(kvm_params())
    assert "mmio_caching=1  MMIO sptes remember where no memory is" in lines
