from __future__ import annotations

import pytest

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
