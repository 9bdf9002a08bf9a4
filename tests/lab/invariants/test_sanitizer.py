"""Laws on demand, in part and by samples. That each is found when an event breaks it: test_mutations.py, mutate/."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from shadowvm.addr import PAGE_SHIFT, Gfn
from shadowvm.errors import ConfigError, InvariantViolation
from shadowvm.kvm.mmu import page_fault
from shadowvm.kvm.mmu.mmio_spte import make_mmio_spte
from shadowvm.kvm.mmu.spte import ACC_ALL, SPTE_MMU_WRITABLE, spte_pfn
from shadowvm.lab.invariants import LAWS, Sanitizer, validate
from shadowvm.lab.invariants.laws import BOTH, laws_seen
from shadowvm.lab.invariants.laws import STATE as BY_STATE
from shadowvm.machine import Machine
from shadowvm.mm.mmu_notifier import NO_SUBSCRIPTIONS
from shadowvm.mm.page_alloc import put_page
from shadowvm.mm.pgtable import pte_index
from shadowvm.x86 import PT_PAGE_SIZE, PT_USER, PT_WRITABLE
from tests.guest_run import config_for
from tests.lab.broken import break_functions
from tests.lab.bugs import SKIP_FLUSH, SKIP_YOUNG_FLUSH
from tests.tiny import READ_THEN_WRITE, write_tiny

MEMTOUCH = ("memtouch", "size=2M passes=1")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine at rest, after a run that left leaves, links and free frames."""
    machine = Machine(config_for(write_tiny(tmp_path, READ_THEN_WRITE), host_memory=4 << 20), lambda byte: None)
    assert machine.run().status == 0
    page = machine.host.alloc_page()
    assert page is not None
    put_page(machine.host, page)
    return machine


def leaf(machine: Machine) -> tuple[Gfn, int]:
    """(gfn, sptep) of a leaf that the TLB has as writable."""
    for slot in machine.kvm.memslots.slots:
        for gfn, head in slot.rmap.items():
            if isinstance(head, int) and machine.vcpu.engine.may_cache_writable(spte_pfn(machine.kvm.q[head])):
                return gfn, head
    raise LookupError


def set_spte(machine: Machine, change: Callable[[int], int]) -> None:
    _, sptep = leaf(machine)
    machine.kvm.q[sptep] = change(machine.kvm.q[sptep])


def set_host_pte(machine: Machine, change: Callable[[int], int]) -> None:
    gfn, _ = leaf(machine)
    slot = machine.kvm.memslots.find(gfn)
    assert slot is not None
    index = pte_index(machine.mm, slot.vpn(gfn))
    assert index is not None
    machine.mm.q[index] = change(machine.mm.q[index])


def free_mapped(machine: Machine) -> None:
    _, sptep = leaf(machine)
    machine.host.zone.free_list.append(machine.mm.mem_map[machine.kvm.q[sptep] >> 12 & 0xFFFFF])


def forget_rmap(machine: Machine) -> None:
    gfn, _ = leaf(machine)
    slot = machine.kvm.memslots.find(gfn)
    assert slot is not None
    del slot.rmap[gfn]


def forget_parent(machine: Machine) -> None:
    next(sp for sp in machine.kvm.sp_by_pfn.values() if sp.parent_ptes).parent_ptes.clear()


def shadow_a_writable_page(machine: Machine) -> None:
    gfn, _ = leaf(machine)
    next(sp for sp in machine.kvm.sp_by_pfn.values() if not sp.direct).gfn = gfn


def empty_bitmap(machine: Machine) -> None:
    for slot in machine.kvm.memslots.slots:
        slot.dirty_bitmap = set()


def zap_root(machine: Machine) -> None:
    page = machine.vcpu.roots[0].pages[0]
    assert page is not None
    page.invalid = True


def drop_slots(machine: Machine) -> None:
    for slot in list(machine.kvm.memslots.slots):
        machine.kvm.memslots.replace(slot, None)


def make_link_large(machine: Machine) -> None:
    sp = next(sp for sp in machine.kvm.sp_by_pfn.values() if sp.level == 2)
    sptep = next(sptep for sptep in range(sp.q, sp.q + 512) if machine.kvm.q[sptep])
    machine.kvm.q[sptep] |= PT_PAGE_SIZE


def write_free(machine: Machine) -> None:
    machine.ram.q[machine.host.zone.free_list[-1].pfn << 9] = 1


def move_in_host_tlb(machine: Machine) -> None:
    vpn, base = next(iter(machine.mm.tlb.items()))
    machine.mm.tlb[vpn] = base + 512


def deny_memory(machine: Machine) -> None:
    gfn, sptep = leaf(machine)
    machine.kvm.q[sptep] = make_mmio_spte(gfn, ACC_ALL, machine.kvm.memslots.generation)


STATE: list[tuple[str, Callable[[Machine], object]]] = [
    ("I3", lambda m: set_host_pte(m, lambda pte: 0)),
    ("I4", free_mapped),
    ("I6", lambda m: set_host_pte(m, lambda pte: pte & ~PT_WRITABLE)),
    ("I7", lambda m: setattr(m.mm, "notifiers", NO_SUBSCRIPTIONS)),
    ("I13", lambda m: setattr(m.kvm, "mmu_invalidate_in_progress", 1)),
    ("I13", lambda m: setattr(m.kvm, "mmu_invalidate_in_progress", -1)),
    ("I16", lambda m: set_spte(m, lambda spte: 0)),
    ("I16", lambda m: set_spte(m, lambda spte: spte & ~(SPTE_MMU_WRITABLE | PT_WRITABLE))),
    ("I17", empty_bitmap),
    ("I18", zap_root),
    ("I21", forget_rmap),
    ("I22", forget_parent),
    ("I23", lambda m: set_spte(m, lambda spte: spte ^ 1 << PAGE_SHIFT)),
    ("I23", lambda m: set_spte(m, lambda spte: spte ^ PT_USER)),
    ("I24", lambda m: set_spte(m, lambda spte: spte & ~SPTE_MMU_WRITABLE)),
    ("I25", shadow_a_writable_page),
    ("I26", lambda m: setattr(m.kvm.stat, "mmu_unsync", m.kvm.stat.mmu_unsync + 1)),
    ("I32", deny_memory),
    ("I28", lambda m: m.kvm.memslots.slots[0].disallow_lpage.clear()),
    ("I29", make_link_large),
    ("I34", drop_slots),
    ("I35", lambda m: setattr(m.kvm.stat, "pages_4k", m.kvm.stat.pages_4k + 1)),
    ("FRAME", lambda m: setattr(m.host.zone.free_list[-1], "refcount", 1)),
    ("POISON", write_free),
    ("HOST-TLB", move_in_host_tlb),
]
"""A law, and what to do to a machine at rest so that its state breaks it."""


@pytest.mark.parametrize(("law", "damage"), STATE, ids=lambda value: value if isinstance(value, str) else "")
def test_a_broken_state_is_found_on_demand(machine: Machine, law: str, damage: Callable[[Machine], object]) -> None:
    validate(machine.kvm)
    damage(machine)
    with pytest.raises(InvariantViolation, match=re.escape(f"invariant {law} violated: {LAWS[law].sentence}")) as found:
        validate(machine.kvm, law)
    assert found.value.law == law
    Sanitizer(machine).validate("I35" if law in ("FRAME", "I4") else "FRAME")


def test_a_law_that_the_state_does_not_show_is_refused(machine: Machine) -> None:
    with pytest.raises(ConfigError, match="I1,I12: the state does not show it"):
        validate(machine.kvm, "I12", "I1", "I22")


def test_looking_changes_nothing(machine: Machine) -> None:
    before = bytes(machine.ram.b), machine.host.vmstat.as_dict(), machine.kvm.notifier.stat.as_dict()
    validate(machine.kvm)
    assert (bytes(machine.ram.b), machine.host.vmstat.as_dict(), machine.kvm.notifier.stat.as_dict()) == before


def law_found(laws: frozenset[str], every: int = 0) -> str | None:
    """The law that memtouch breaks on a small host, if one of `laws` is."""
    machine = Machine(config_for(*MEMTOUCH, host_memory=2 << 20), lambda byte: None)
    sanitizer = Sanitizer(machine, laws, every=every)
    try:
        with sanitizer.watching():
            machine.run()
    except InvariantViolation as violation:
        return violation.law
    return None


@pytest.mark.parametrize("laws", ["I16", "I3", "I4 I22", "I22 I21 I35"])
def test_only_the_laws_asked_for_are_checked(monkeypatch: pytest.MonkeyPatch, laws: str) -> None:
    break_functions(monkeypatch, [SKIP_FLUSH, SKIP_YOUNG_FLUSH])
    broken = {"I16", "I3", "I4"} & set(laws.split())
    assert law_found(frozenset(laws.split())) == (min(broken) if broken else None)


@pytest.mark.parametrize("every", [1, 7, 50])
def test_samples_find_what_stays_broken(monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    break_functions(monkeypatch, [(page_fault.mmu_set_spte, "kvm.stat.pages_4k += 1", "pass")])
    assert law_found(laws_seen(BY_STATE), every) == "I35"
    assert law_found(frozenset({"I22"}), every) is None


def test_samples_hear_of_exits_alone_unless_a_law_needs_more() -> None:
    machine = Machine(config_for("hello"), lambda byte: None)
    assert [each.name for each in Sanitizer(machine, laws_seen(BY_STATE), every=5)._handlers] == ["kvm_exit"]
    followed = Sanitizer(machine, frozenset({"I22", "I12"}), every=5)
    assert followed.laws == {"I12"}
    assert followed.by_state == {"I22"}
    assert "kvm_mmu_seq_sample" in [each.name for each in followed._handlers]


def test_an_undamaged_run_is_clean_in_samples() -> None:
    assert law_found(laws_seen(BOTH), every=1) is None
