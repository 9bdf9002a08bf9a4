"""The fixed words of the oracle's guest lead from any root, in any mode, to the code and to every window."""

from __future__ import annotations

import pytest

from shadowvm.lab.oracle import layout as at
from shadowvm.lab.oracle.model import OK, Model, access_of
from shadowvm.lab.oracle.paging import ERR_P
from shadowvm.lab.oracle.traps import places_for, traps_page


def model_in(mode: int, root: int) -> Model:
    model = Model(1, lambda place: None)
    model.memory.words.update(at.link_tables())
    for hpage in at.POOL:
        model.memory.words.update({hpage << 9 | word: value for word, value in at.fixed_words(hpage).items()})
    control = model.cpus[0].control
    control.mode, control.cr3 = mode, root << 12
    control.pdptrs = tuple(model.memory.words.get(root << 9 | 504 + n, 0) for n in range(4))
    control.smep = control.smap = True
    return model


@pytest.mark.parametrize("mode", range(5))
def test_code_and_windows_are_where_they_are_said_to_be(mode: int) -> None:
    model = model_in(mode, at.ROOTS[3])
    cpu = model.cpus[0]
    places = [(at.code_address(mode, cpl), at.CODE, "x", cpl) for cpl in (0, 3)]
    places += [(at.traps_address(mode), at.TRAPS, "w8", 0)]
    places += [(at.window_address(mode, gfn), model.memory.find(gfn), "w8", 0) for gfn in at.WINDOWS]
    for va, hpage, kind, cpl in places:
        (path,) = model.paths(cpu, va)
        assert (path.kind, path.hpage) == (OK, hpage)
        assert model.verdict(cpu, path, access_of(kind, cpl, False))[1] & ERR_P == 0


def test_the_code_is_instructions_with_an_exit_behind_each() -> None:
    page = at.code_page()
    for number, code in enumerate(at.KINDS.values()):
        assert page[number * at.STEP :].startswith(code + at.STOP)
    assert len(page) == 4096


@pytest.mark.parametrize(("mode", "size"), [(at.LA57, 16), (at.PT64, 16), (at.PAE, 8), (at.PT32, 8)])
def test_gates_lead_to_the_exits_of_their_vectors(mode: int, size: int) -> None:
    idt, _ = places_for(mode)
    for vector in at.VECTORS:
        gate = traps_page()[idt + size * vector :][:size]
        offset = int.from_bytes(gate[:2] + gate[6 : size - 4 if size == 16 else 8], "little")
        assert offset == at.handler_address(mode, vector)
        assert at.code_page()[offset & 0xFFF :].startswith(at.STOP)
