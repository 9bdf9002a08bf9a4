"""What a user of `shadowvm stat` sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.cli.main import main

Capture = pytest.CaptureFixture[str]
GUEST = ("memtouch", "-append", "size=1792K", "--host-memory", "2M")


def stat(capfd: Capture, *args: str) -> tuple[int, str, str]:
    """(status, stdout, stderr)."""
    status = main(["stat", *args])
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return status, out, err


def totals(table: str) -> dict[str, int]:
    return {line.split()[0]: int(line.split()[1]) for line in table.splitlines() if line.split()[1].isdigit()}


def test_a_guest_and_its_trace_are_counted_alike(capfd: Capture, tmp_path: Path) -> None:
    trace = str(tmp_path / "trace")
    assert main(["run", *GUEST, "--trace", trace]) == 0
    capfd.readouterr()
    status, live, err = stat(capfd, *GUEST, "-1", "-t", "-f", "kvm_(exit|page_fault|age)")
    assert status == 0
    assert "memtouch: ok" in err
    assert "debug-exit, status 0" in err
    assert totals(live)["kvm_exit(EXCEPTION_NMI)"] == totals(live)["kvm_page_fault"] > 1000
    assert stat(capfd, trace, "-1", "-f", "kvm_(exit|page_fault|age)") == (0, live, "")
    lines = [line.split() for line in stat(capfd, trace, "-l", "-i", "1000000", "-f", "kvm_exit$")[1].splitlines()]
    assert lines[0] == ["time/ms", "kvm_exit"]
    assert [each[0] for each in lines[1:3]] == ["1.000", "2.000"]
    assert sum(int(each[1]) for each in lines[1:]) == totals(live)["kvm_exit"]


def test_counters_are_shown_at_intervals(capfd: Capture) -> None:
    status, out, _ = stat(capfd, *GUEST, "-i", "2000000")
    assert status == 0
    assert out.count("Event  ") == 3
    assert out.splitlines()[1].split() == ["Event", "Total", "%Total", "CurAvg/s"]
    last = out[out.rindex("virtual time") :]
    assert totals(last)["pf_taken"] >= totals(last)["pf_fixed"] > 1000
    assert "mmio_exits" not in last


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["hello", "-i", "0"], "-i: '0' is no number"),
        (["hello", "-f", "("], "-f: '(' is no regular expression"),
        (["hello", "-l", "-icount", "off"], "drop -icount off"),
        (["nosuchguest"], "nosuchguest"),
        ([], "nothing to run"),
    ],
)
def test_bad_usage_is_one_line(args: list[str], complaint: str, capfd: Capture) -> None:
    status, out, err = stat(capfd, *args)
    assert (status, out, err.count("\n")) == (125, "", 1)
    assert complaint in err
