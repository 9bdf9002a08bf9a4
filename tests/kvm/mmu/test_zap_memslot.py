"""slot_zap_all=0: what belongs to the slot goes, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.params import KvmParams
from tests.kvm.test_memory_region import EXTRA, MIB, SLOT, TOUCH, WAIT, add, machine_for, run_with, tell, until
from tests.tiny import EXIT

SHADOWED = f"mov qword [{EXTRA:#x}], 0x400063\nmov qword [0xb018], {EXTRA | 0x23:#x}\nmov rax, cr3\nmov cr3, rax\n"
"""The slot holds the page table of 6 MiB."""


@pytest.mark.parametrize("zap_all", [0, 1])
def test_sptes_of_other_slots_stay_unless_all_go(zap_all: int, tmp_path: Path) -> None:
    source = f"{TOUCH}{SHADOWED}mov eax, [0x600000]\nmov dword [0x7904], 1\n{WAIT.format(7)}xor eax, eax\n{EXIT}"
    machine = machine_for(tmp_path, source, kvm_params=KvmParams(slot_zap_all=zap_all, unsync=0))
    hva = add(machine)
    kvm = machine.kvm
    left: list[tuple[int, int]] = []

    def delete() -> None:
        until(machine, 0x7904)
        slot = kvm.id_to_memslot(SLOT)
        assert slot is not None
        assert (len(slot.rmap), len(slot.gfn_write_track)) == (256, 1)
        pages, zapped = len(kvm.active_mmu_pages), kvm.stat.mmu_shadow_zapped
        kvm.set_user_memory_region(SLOT, EXTRA, 0, hva)
        left.append((pages, kvm.stat.mmu_shadow_zapped - zapped))
        assert not any(EXTRA >> 12 <= gfn < (EXTRA + MIB) >> 12 for gfn in kvm.page_hash)
        assert (slot.rmap, slot.gfn_write_track) == ({}, {})
        tell(machine, 7)

    assert run_with(machine, delete) == 0
    pages, zapped = left[0]
    assert zapped == (pages if zap_all else 2)
