"""The names that pages have in the logs; that nothing is missing there is tested with the operations."""

from __future__ import annotations

from shadowvm.lab.oracle import layout as at
from shadowvm.lab.oracle.dirty_logs import page_of


def test_a_page_is_the_same_by_whatever_slot_it_is_written() -> None:
    assert page_of(at.HIGH, 3) == page_of(at.IN_SMM | at.HIGH, 3) == at.HIGH << 16 | 3
    assert page_of(at.MOVING, at.SMM_OFFSET) == page_of(at.IN_SMM | at.MOVING, 0) == at.MOVING << 16 | at.SMM_OFFSET
