"""The tables of kvm_stat."""

from __future__ import annotations

from shadowvm.events import kvm_exit
from shadowvm.trace.stat import Batch, Counter, Log, Table, chosen


def test_the_table_has_totals_shares_and_rates_of_the_last_interval() -> None:
    table = Table()
    table.show(500_000_000, {"a": 10, "b": 30, "c": 0})
    lines = table.show(1_000_000_000, {"a": 30, "b": 70, "c": 0, "b(x)": 70}).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["Event", "Total", "%Total", "CurAvg/s"],
        ["b(x)", "70", "70.0", "140"],
        ["b", "70", "70.0", "80"],
        ["a", "30", "30.0", "40"],
        ["Total", "100", "120"],
    ]
    assert "1.000000000 s" in lines[0]
    assert Table().show(0, {"a": 1}).splitlines()[2].split() == ["a", "1", "100.0", "-"]


def test_batch_and_log_show_changes() -> None:
    batch, log = Batch(), Log()
    assert batch.show(1, {"b": 1, "a": 2}).split() == ["a", "2", "2", "b", "1", "1"]
    assert batch.show(2, {"b": 4, "a": 2}).split() == ["a", "2", "0", "b", "4", "3"]
    assert [line.split() for line in log.show(1_000_000, {"b": 1, "a": 0}).splitlines()] == [
        ["time/ms", "b"],
        ["1.000", "1"],
    ]
    assert log.show(2_500_000, {"b": 4, "a": 9}).split() == ["2.500", "3"]


def test_fields_are_chosen_by_their_beginning_as_kvm_stat_does() -> None:
    assert chosen({"pf_taken": 1, "exits": 2}, "pf|x") == {"pf_taken": 1}
    assert chosen({"a": 1}, "") == {"a": 1}


def test_exits_are_counted_by_reason_too() -> None:
    counter = Counter()
    for reason in ("HLT", "IO", "HLT"):
        counter.sink(kvm_exit, (0, reason, 0, 0, 0))
    assert counter.totals == {"kvm_exit": 3, "kvm_exit(HLT)": 2, "kvm_exit(IO)": 1}
