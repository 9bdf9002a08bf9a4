"""What the full-screen view does with a line: it always comes back with something to show."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from shadowvm.debug.monitor import Monitor
from shadowvm.debug.timeline import Timeline
from shadowvm.debug.tui.session import Result, Session


@pytest.fixture
def session(timeline: Timeline) -> Session:
    session = Session(Monitor(timeline))
    session.execute("restart")
    return session


def test_what_is_refused_is_told_and_shown(session: Session) -> None:
    for line in ("frobnicate", "x /4xg", "break", "look nosuchsymbol", "until 0", "look gpa", "look 1/0", "x" * 3000):
        result = session.execute(line)
        assert result.refused, line
        assert len(result.lines) == 1, line
        assert result.panes is not None
    assert not session.execute("").refused


def test_a_bug_of_ours_is_one_line(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.monitor, "execute", lambda _line: {}[_line])
    result = session.execute("anything")
    assert result.lines == ["internal error: 'anything'"]
    assert result.panes is not None


def why(result: Result) -> str:
    assert result.panes is not None
    return f"{result.panes.why}: {result.panes.guest[0].text}"


def test_look_stays_or_follows(session: Session) -> None:
    assert why(session.execute("")).startswith("rip: gva 0x10009c")
    session.execute("break kvm_page_fault if error_code & 2")
    assert why(session.execute("c")).startswith("fault W, event")
    assert why(session.execute("look rsp")).startswith("pinned: gva 0x10c4b0,")
    assert why(session.execute("look gpa 0x5000")) == "pinned: gpa 0x5000: no gva is known for it"
    assert why(session.execute("until 400000")) == "pinned: gpa 0x5000: no gva is known for it"
    rsp = session.execute("look rsp")
    assert rsp.panes is not None
    assert f"gva {rsp.panes.registers['rsp']:#x}," in why(rsp)
    assert why(session.execute("look")).startswith("fault W")
    assert any("look" in line for line in session.execute("help").lines)


def test_changed_registers_are_those_of_the_last_step(session: Session) -> None:
    session.execute("until 400000")
    assert session.execute("stepi").changed >= {"rip"}
    before = session.execute("stepi")
    assert session.execute("when").changed == before.changed
    assert "cr3" not in before.changed


def test_breakpoints_are_known_by_address(session: Session) -> None:
    result = session.execute("break main")
    assert list(result.breaks.values()) == [True]
    assert list(session.execute("disable 1").breaks.values()) == [False]


def test_a_run_can_be_interrupted_from_outside(session: Session) -> None:
    timer = threading.Timer(0.05, session.interrupt)
    timer.start()
    result = session.execute("next 100000")
    timer.join()
    assert (result.refused, result.stop.kind) == (False, "interrupt")


def test_a_machine_that_has_died_goes_on_from_a_checkpoint(session: Session) -> None:
    there = session.execute("until 400000")
    os.kill(session.timeline.worker.pid, signal.SIGKILL)
    for line in ("stepi", "when", "break main", "info registers"):
        result = session.execute(line)
        assert result.panes is None
        assert "the machine's process is gone" in result.lines[-1]
    session.execute("restart")
    assert session.execute("until 400000").panes == there.panes
