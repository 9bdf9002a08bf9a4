"""Table 6-5 of the SDM, volume 3: what two exceptions in a row become."""

from __future__ import annotations

import pytest

from shadowvm.cpu.engine import Event, EventKind
from shadowvm.kvm.exception import merge_events

CONTRIBUTORY = (0, 10, 11, 12, 13)
BENIGN = (1, 2, 3, 4, 5, 6, 7, 9, 16, 17, 18, 19)
PF, DF = 14, 8


def exception(vector: int) -> Event:
    return Event(EventKind.EXCEPTION, vector, 0)


def outcome(first: int, second: int) -> str:
    merged = merge_events(exception(first), exception(second))
    if merged is None:
        return "shutdown"
    if merged.vector == DF and second != DF:
        assert merged.error_code == 0
        return "double"
    assert merged == exception(second)
    return "serial"


@pytest.mark.parametrize("second", [*BENIGN, *CONTRIBUTORY, PF])
def test_table_6_5(second: int) -> None:
    for first in BENIGN:
        assert outcome(first, second) == "serial"
    for first in CONTRIBUTORY:
        assert outcome(first, second) == ("double" if second in CONTRIBUTORY else "serial")
    assert outcome(PF, second) == ("double" if second in (*CONTRIBUTORY, PF) else "serial")
    assert outcome(DF, second) == "shutdown"


def test_an_exception_by_itself_stays_as_it_is() -> None:
    event = Event(EventKind.EXCEPTION, PF, 6, 0x1234)
    assert merge_events(None, event) == event


@pytest.mark.parametrize("kind", [EventKind.INTERRUPT, EventKind.NMI, EventKind.SOFTWARE])
def test_an_exception_during_an_interrupt_comes_first(kind: EventKind) -> None:
    assert merge_events(Event(kind, 14), exception(13)) == exception(13)


def test_a_page_fault_that_becomes_a_double_fault_has_loaded_cr2() -> None:
    merged = merge_events(exception(PF), Event(EventKind.EXCEPTION, PF, 2, 0x5678))
    assert merged == Event(EventKind.EXCEPTION, DF, 0, 0x5678)
