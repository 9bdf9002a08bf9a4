"""dirty_log_test, the guest, migrated while it runs: no store is missing from the harvest that follows it."""

from __future__ import annotations

from typing import Any

import pytest

from shadowvm.config import MIB
from shadowvm.errors import KvmError
from shadowvm.params import KvmParams
from tests.kvm.dirty_log import MODES, migrate

LITTLE = "pages=200 iterations=12 writes=60"
HOSTS: dict[str, dict[str, Any]] = {
    "plenty": {},
    "little memory": {"host_memory": 2 * MIB},
    "two cpus": {"smp": 2, "quantum": (50, 2000), "seed": 5},
    "two cpus, little memory": {"smp": 2, "quantum": (50, 2000), "seed": 3, "host_memory": 2304 << 10},
}
"""How the guest runs."""
TDP: dict[str, dict[str, int]] = {
    "the TDP MMU": {},
    "without A and D bits": {"eptad": 0},
    "direct shadow pages": {"tdp_mmu": 0},
    "D bits": {"pml": 1},
}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_missed(mode: str, host: str) -> None:
    migration = migrate(mode, "dirty_log_test", LITTLE, **HOSTS[host])
    assert len(migration.harvests) > 5
    assert min(migration.harvests[1:-1], default=0) > 0 or sum(migration.harvests) > 200


@pytest.mark.parametrize("params", TDP)
@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_missed_by_two_dimensional_paging(mode: str, params: str) -> None:
    """With two CPUs, on a little host."""
    values = KvmParams(**TDP[params])
    if mode == "ring" and values.pml:
        with pytest.raises(KvmError, match="pml"):
            migrate(mode, "dirty_log_test", LITTLE, mmu="tdp", kvm_params=values)
        return
    options = HOSTS["two cpus, little memory"]
    migration = migrate(mode, "dirty_log_test", LITTLE, mmu="tdp", kvm_params=values, **options)
    assert sum(migration.harvests[1:]) > 400


def test_a_full_ring_stops_its_cpu_until_it_is_reset() -> None:
    """A ring of 256 entries under a guest that dirties more than 192 pages between two harvests."""
    migration = migrate("ring", "dirty_log_test", "pages=600 iterations=3 writes=600", pauses=200)
    assert migration.full >= 3
    assert max(migration.harvests) <= 256


def test_page_tables_that_are_written_by_emulation_are_not_missed() -> None:
    options: dict[str, Any] = {"memory": 8 * MIB, "kvm_params": KvmParams(unsync=0)}
    migration = migrate("get", "ptchurn", "pages=32 rounds=1 switches=2", pauses=150, **options)
    assert sum(migration.harvests) > 50
    assert migration.kvm.vcpus[0].stat.insn_emulation > 100
