"""`shadowvm report`: where the page goes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.cli.main import main
from tests.report.traces import PRESENT, VCPU, E, fault, pte, write_trace


@pytest.fixture
def trace(tmp_path: Path) -> str:
    events = [pte(0, 5, 0, PRESENT), pte(500, 6, 0, PRESENT), *fault(600, 6), E(999, VCPU, "kvm_entry", (0, 0))]
    return write_trace(tmp_path / "trace", events)


def test_the_page_goes_to_a_file_or_to_stdout(trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "out.html"
    assert main(["report", trace, "-o", str(page)]) == 0
    assert main(["report", trace, "-o", "-"]) == 0
    told = capsys.readouterr()
    assert told.out == page.read_text()
    assert told.out.startswith("<!DOCTYPE html>")
    assert told.err == ""


def test_the_heat_map_goes_to_a_terminal(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", trace, "--heatmap", "--resol", "4", "9"]) == 0
    assert capsys.readouterr().out == "           5 0000\n           6 ..00\n"
    assert main(["report", trace, "--heatmap", "--time_range", "0", "500", "--address_range", "0x6000", "1M"]) == 0
    assert capsys.readouterr().out == f"           6 {'.' * 80}\n"


def test_a_trace_that_was_cut_short_makes_a_page_and_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_trace(tmp_path / "trace", fault(0, 5), cut=True)
    assert main(["report", path, "-o", "-"]) == 0
    told = capsys.readouterr()
    assert "cut short" in told.out
    assert told.err == f"shadowvm: {path}: cut short, after 3 events in whole chunks\n"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ([], "one of the arguments -o/--output --heatmap is required"),
        (["-o", "-", "--heatmap"], "not allowed with argument"),
        (["-o", "TRACE"], "is the trace itself"),
        (["-o", "/no/such/place"], "/no/such/place: No such file or directory"),
        (["--heatmap", "--resol", "0", "9"], "--resol: '0' is no number of bins, 1 to 2000"),
        (["--heatmap", "--resol", "9", "1e3"], "--resol: '1e3' is no number of bins"),
        (["--heatmap", "--time_range", "5", "5"], "--time_range: nothing is from 0x5 to 0x5"),
        (["--heatmap", "--time_range", "1s", "2s"], "--time_range: nothing there; the trace is from 0 ns to 999 ns"),
        (["--heatmap", "--time_range", "soon", "2s"], "'soon' is no time"),
        (["--heatmap", "--address_range", "0", "top"], "--address_range: 'top' is no address"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    flags: list[str], complaint: str, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path(trace).read_bytes()
    assert main(["report", trace, *(trace if flag == "TRACE" else flag for flag in flags)]) == 125
    told = capsys.readouterr()
    assert complaint in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""
    assert Path(trace).read_bytes() == before


def test_what_is_no_trace_leaves_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text("no trace")
    assert main(["report", str(tmp_path / "text"), "-o", str(tmp_path / "out.html")]) == 125
    assert not (tmp_path / "out.html").exists()
    assert capsys.readouterr().err == f"shadowvm: {tmp_path / 'text'}: no trace of shadowvm\n"
