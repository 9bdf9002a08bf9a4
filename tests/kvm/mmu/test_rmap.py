"""The reverse map: a frame that is mapped a thousand times is unmapped everywhere, and mapped anew where it is used."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shadowvm.addr import Gfn, Hva
from shadowvm.errors import ModelBug
from shadowvm.events import Tracepoint, attached, kvm_flush_remote_tlbs, lock_release, spte_change
from shadowvm.kvm.memslot import MemSlot
from shadowvm.kvm.mmu.rmap import RMAP_RECYCLE_THRESHOLD, kvm_rmap_age, large_gfns, rmap_remove, rmap_sptes
from shadowvm.kvm.mmu.spte import SPTE_MMU_PRESENT
from shadowvm.machine import Machine
from shadowvm.params import KvmParams
from shadowvm.x86 import PT_ACCESSED, PT_PRESENT
from tests.guest_run import config_for
from tests.tiny import EXIT, write_tiny

MAPPED = 1010
CHAIN = """
mov edi, 0x300000
mov ecx, 1024
fill: mov qword [rdi], {entry}
add edi, 8
dec ecx
jnz fill
mov qword [{link}], 0x300063
mov qword [{link} + 8], 0x301063
mov rax, cr3
mov cr3, rax
mov qword [0x400000], 0
mov rdi, {first}
mov ecx, {mapped}
touch: inc qword [rdi]
add rdi, {size}
dec ecx
jnz touch
mov rax, [0x400000]
sub eax, {mapped}
{exit}"""
"""Two tables whose entries all map the page at 4 MiB, and a store through each of 1010 of them."""
SMALL = CHAIN.format(entry="0x400063", link="0xb018", first="0x600000", size="0x1000", mapped=MAPPED, exit=EXIT)
CHAINS = {
    "4 KiB": SMALL,
    "4 KiB, eight at a time": SMALL,
    "2 MiB": CHAIN.format(
        entry="0x4000e3", link="0xa020", first="0x100000000", size="0x200000", mapped=MAPPED, exit=EXIT
    ),
}


@pytest.mark.parametrize("size", CHAINS)
def test_a_frame_that_is_mapped_too_often_is_unmapped_everywhere(tmp_path: Path, size: str) -> None:
    """As kvm-unit-tests' rmap_chain has it. What comes next after all the zaps is a flush, not the end of the lock."""
    thp, params = "always" if size == "2 MiB" else "never", KvmParams(prefetch=size != "4 KiB")
    config = config_for(write_tiny(tmp_path, CHAINS[size]), thp=thp, kvm_params=params)
    machine = Machine(config, lambda byte: None)
    zapped, then = 0, []

    def sink(tracepoint: Tracepoint, args: tuple[int, ...]) -> None:
        nonlocal zapped
        if tracepoint is spte_change:
            zapped = zapped + 1 if args[1] & SPTE_MMU_PRESENT and not args[2] else 0
        elif zapped > RMAP_RECYCLE_THRESHOLD:
            then.append((tracepoint.name, zapped))
            zapped = 0

    with attached(sink, (spte_change, kvm_flush_remote_tlbs, lock_release)):
        outcome = machine.run()
    machine.close()
    assert outcome.status == 0
    assert then[0] == ("kvm_flush_remote_tlbs", RMAP_RECYCLE_THRESHOLD + 1)
    assert machine.kvm.stat.max_mmu_rmap_size == RMAP_RECYCLE_THRESHOLD + 1


def slot_with(rmap: dict[int, int | list[int]], large: dict[int, int | list[int]]) -> MemSlot:
    slot = MemSlot(0, Gfn(0), 1 << 20, Hva(0))
    slot.rmap.update((Gfn(gfn), head) for gfn, head in rmap.items())
    slot.rmap_large.update((Gfn(gfn), head) for gfn, head in large.items())
    return slot


def test_a_page_is_found_by_its_own_sptes_and_by_the_large_ones_over_it() -> None:
    slot = slot_with({5: 50, 600: [60, 61]}, {0: 70, 512: [80, 81]})
    assert [list(rmap_sptes(slot, Gfn(gfn))) for gfn in (5, 6, 600, 1024)] == [[50, 70], [70], [60, 61, 80, 81], []]


@pytest.mark.parametrize("many", [0, 20])
def test_large_sptes_are_found_by_any_page_of_theirs(many: int) -> None:
    """Whether the range or the list is the shorter one."""
    slot = slot_with({}, {512: 1, 1024: 2, **{(100 + n) * 512: 3 for n in range(many)}})
    for first, last, found in (
        (513, 514, [512]),
        (0, 512, []),
        (1023, 1025, [512, 1024]),
        (1535, 1536, [1024]),
        (600, 20000, [512, 1024]),
    ):
        assert large_gfns(slot, Gfn(first), Gfn(last)) == found


def test_an_spte_leaves_its_list_once() -> None:
    slot = slot_with({5: [50, 51], 6: 60}, {})
    rmap_remove(slot, Gfn(5), 50)
    rmap_remove(slot, Gfn(5), 51)
    rmap_remove(slot, Gfn(6), 60)
    assert not slot.rmap
    for gfn, sptep in ((5, 50), (6, 60)):
        with pytest.raises(ModelBug, match="is not in the list"):
            rmap_remove(slot, Gfn(gfn), sptep)


def test_every_spte_of_a_page_is_aged() -> None:
    """One that stays young would make the page look used for ever."""
    kvm: Any = SimpleNamespace(q=[PT_ACCESSED | PT_PRESENT, PT_PRESENT, PT_ACCESSED | PT_PRESENT])
    assert kvm_rmap_age(kvm, [0, 1, 2], clear=False)
    assert kvm.q[2] & PT_ACCESSED
    assert kvm_rmap_age(kvm, [0, 1, 2], clear=True)
    assert kvm.q == [PT_PRESENT] * 3
    assert not kvm_rmap_age(kvm, 1, clear=True)
