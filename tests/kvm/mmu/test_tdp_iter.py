"""The traversal shows each entry once, in order of gfns, and starts anew where it would have come to."""

from __future__ import annotations

from shadowvm.addr import Gfn
from shadowvm.config import MIB
from shadowvm.kvm.mmu.tdp_iter import TdpIter, tdp_leaf
from shadowvm.kvm.vm import Kvm
from tests.kvm.mmu.nested_cpu import cpus_of, make_vm

PAGE = 0x1000
TOUCHED = (0x3, 0x1FF, 0x200, 0x3FF)


def touched() -> Kvm:
    kvm = make_vm()
    for gfn in TOUCHED:
        cpus_of(kvm)[0].store(gfn * PAGE, gfn)
    return kvm


def present(kvm: Kvm, first: int, last: int, min_level: int = 1) -> list[tuple[int, int]]:
    walk = TdpIter(kvm, kvm.tdp_mmu_roots[0], Gfn(first), Gfn(last), min_level=min_level)
    seen = []
    while walk.next():
        if walk.old_spte:
            seen.append((walk.level, walk.gfn))
    return seen


def test_entries_come_top_down_and_in_order() -> None:
    kvm = touched()
    tables = [(4, 0), (3, 0), (2, 0)]
    assert present(kvm, 0, 1 << 36) == [*tables, (1, 3), (1, 0x1FF), (2, 0x200), (1, 0x200), (1, 0x3FF)]
    assert present(kvm, 0, 1 << 36, min_level=2) == [*tables, (2, 0x200)]


def test_a_range_leaves_out_what_is_beside_it() -> None:
    kvm = touched()
    leaves = [gfn for level, gfn in present(kvm, 4, 0x3FF) if level == 1]
    assert leaves == [0x1FF, 0x200]
    assert [gfn for level, gfn in present(kvm, 0x3FF, 0x400) if level == 1] == [0x3FF]


def test_each_entry_of_a_table_is_shown() -> None:
    kvm = touched()
    walk = TdpIter(kvm, kvm.tdp_mmu_roots[0], Gfn(0), Gfn(0x400))
    gfns = []
    while walk.next():
        if walk.level == 1:
            gfns.append(walk.gfn)
    assert gfns == list(range(0x400))


def test_after_a_yield_it_goes_on_where_it_was_though_the_table_has_gone() -> None:
    kvm = touched()
    walk = TdpIter(kvm, kvm.tdp_mmu_roots[0], Gfn(0), Gfn(0x400))
    seen = []
    while walk.next():
        if walk.level == 1 and walk.old_spte:
            seen.append(walk.gfn)
            if walk.gfn == 0x1FF:
                walk.next_last_level_gfn = Gfn(0x200)
                walk.yielded = True
                level3 = kvm.q[kvm.tdp_mmu_roots[0].q] >> 12 << 9
                kvm.q[kvm.q[level3] >> 12 << 9] = 0
    assert seen == [3, 0x1FF, 0x200, 0x3FF]


def test_one_look_finds_a_leaf() -> None:
    kvm = touched()
    root = kvm.tdp_mmu_roots[0]
    for gfn in range(0x600):
        assert (tdp_leaf(kvm, root, gfn) >= 0) == (gfn in TOUCHED)
    cpus_of(kvm)[0].store(MIB, 1)
    assert tdp_leaf(kvm, root, 0x100) % 512 == 0x100
