"""The full-screen view, used as a user would: keys, commands, sizes."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from select import select

import pytest
from textual.pilot import Pilot

from shadowvm.debug.monitor import Monitor
from shadowvm.debug.timeline import Timeline
from shadowvm.debug.tui.app import DebuggerApp
from shadowvm.debug.tui.help import HelpScreen
from shadowvm.debug.tui.session import Session
from shadowvm.debug.tui.widgets import Prompt
from tests.debug.machines import target_of

Use = Callable[[DebuggerApp, "User"], Awaitable[None]]


@pytest.fixture(scope="module")
def timeline() -> Iterator[Timeline]:
    timeline = Timeline(target_of)
    yield timeline
    timeline.close()


class User:
    """Presses keys, and waits until everything is done."""

    def __init__(self, app: DebuggerApp, pilot: Pilot[int]) -> None:
        self.app, self.pilot = app, pilot

    async def keys(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.until(lambda: self.app.is_idle)
        await self.pilot.pause()

    async def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(3000):
            if condition():
                return
            await self.pilot.pause(0.01)
        pytest.fail("it never came to that")

    async def types(self, *lines: str) -> None:
        for line in lines:
            self.app.query_one(Prompt).value = line
            await self.keys("enter")

    def texts(self) -> dict[str, str]:
        """Of the panes that show the machine, without the marks of what the last step has changed."""
        panes = {name: pane.plain for name, pane in self.app.panes.items() if name != "output"}
        return panes | {"registers": panes["registers"].replace("*", " ")}

    def seen(self) -> set[str]:
        return {name for name, pane in self.app.panes.items() if pane.region.area and pane.display}


def use(timeline: Timeline, size: tuple[int, int], what: Use) -> None:
    async def run() -> None:
        app = DebuggerApp(Session(Monitor(timeline)), "memtouch", ["restart"])
        async with app.run_test(size=size) as pilot:
            user = User(app, pilot)
            await user.keys()
            await what(app, user)

    asyncio.run(run())


def test_into_a_fault_and_back_at_80_by_24(timeline: Timeline) -> None:
    async def fault(app: DebuggerApp, user: User) -> None:
        await user.keys("colon")
        await user.types("break kvm_mmu_set_spte if gfn == 0x2c0", "c")
        stop = user.texts()
        assert "L2[  1] 0x2000e3 P W A D PS" in stop["guest"]
        spte = re.search(r"L1\[192\] (0x\w+) P W A D host-w\s+mmu-w", stop["shadow"])
        assert spte is not None
        assert f"spte {int(spte[1], 16):x}" in stop["events"].splitlines()[-1]
        assert stop["events"].splitlines()[-1].startswith("▶")
        assert "▷" in stop["code"]
        assert "host pte 0x" in stop["host"]
        await user.keys("escape", "p")
        assert user.texts() != stop
        events = app.panes["events"]
        assert events.vertical_scrollbar.position == events.scroll_y == len(events.lines) - events.room[1]
        await user.keys("b")
        assert user.texts() == stop
        await user.keys("f", "s", "r")
        assert user.texts() == stop
        await user.keys("f", "s")
        assert "rip*" in app.panes["registers"].plain
        assert "▶" in user.texts()["code"]

    use(timeline, (80, 24), fault)


def test_small_screens_have_tabs_and_large_ones_show_all(timeline: Timeline) -> None:
    async def sizes(app: DebuggerApp, user: User) -> None:
        assert user.seen() == {"code", "registers", "guest", "shadow", "output"}
        await user.keys("5", "8")
        assert user.seen() == {"code", "registers", "host", "output"}
        assert app.focused is app.panes["output"]
        await user.keys("6", "9", "z")
        assert user.seen() == {"console"}
        await user.keys("z", "3", "7")
        await user.pilot.resize_terminal(120, 40)
        await user.keys()
        assert user.seen() == {*app.panes} - {"console"}
        await user.pilot.resize_terminal(200, 60)
        await user.keys()
        assert user.seen() == {*app.panes}
        assert "at gpa 0x9000" in user.texts()["guest"]
        await user.pilot.resize_terminal(80, 24)
        await user.keys()
        assert user.seen() == {"code", "registers", "guest", "shadow", "events"}
        for name in user.seen():
            pane = app.panes[name]
            assert all(line.cell_len <= pane.room[0] for line in pane.lines) or name in ("code", "events")

    use(timeline, (80, 24), sizes)


def test_the_command_line(timeline: Timeline) -> None:
    async def lines(app: DebuggerApp, user: User) -> None:
        prompt = app.query_one(Prompt)
        await user.keys("colon", "w", "h", "tab")
        assert prompt.value == "when "
        await user.keys("enter")
        await user.types("frobnicate")
        output = app.panes["output"].plain
        assert "(shadowvm) when\ninstruction 0, event 0\n" in output
        assert output.endswith("'frobnicate' is no command; help lists them")
        last = app.panes["output"].render_line(app.panes["output"].room[1] - 1)
        assert any(segment.style is not None and segment.style.bold for segment in last), "what is refused stands out"
        await user.keys("up", "up")
        assert prompt.value == "when"
        prompt.value = "break swap_"
        await user.keys("end", "tab")
        assert "swap_readpage  swap_writepage" in app.panes["output"].plain
        await user.keys("ctrl+c")
        assert prompt.value == ""
        await user.keys("escape", "question_mark")
        assert isinstance(app.screen, HelpScreen)
        await user.keys("s")
        assert not isinstance(app.screen, HelpScreen)
        assert timeline.position.instructions == 0
        await user.keys("l", "r", "s", "p", "enter")
        assert app.panes["guest"].plain.startswith("gva 0x8ff0,")

    use(timeline, (80, 24), lines)


def test_a_run_leaves_the_screen_alive_and_can_be_interrupted() -> None:
    timeline = Timeline(partial(target_of, "memtouch", "passes=2", 4 << 20))

    async def interrupt(app: DebuggerApp, user: User) -> None:
        await user.pilot.press("c")
        await user.until(lambda: app.busy)
        await user.pilot.press("5", "s", "s", "ctrl+c")
        await user.keys()
        assert app.result is not None
        assert app.result.stop.kind == "interrupt"
        assert "host" in user.seen()
        here = timeline.position
        await user.keys("s")
        assert timeline.position.instructions == here.instructions + 1
        os.kill(timeline.worker.pid, signal.SIGKILL)
        await user.keys("s")
        assert "the machine's process is gone" in app.panes["output"].plain
        await user.keys("colon")
        await user.types("restart")
        assert timeline.position.instructions == 0

    use(timeline, (120, 40), interrupt)
    timeline.close()


def test_in_a_terminal_until_q() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm", NO_COLOR="1", COLUMNS="80", LINES="24")
        os.execv(sys.executable, [sys.executable, "-m", "shadowvm", "debug", "hello", "-tui", "-ex", "when"])
    said = b""
    while select([terminal], [], [], 20)[0]:
        try:
            more = os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
        said += more
        if b"event 0" in said.partition(b") when")[2] and b"quit" in said:
            os.write(terminal, b"q")
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert said.rpartition(b"\x1b[?1049h")[2].count(b"\x1b[?1049l") == 1, "the terminal is as it was"
    assert b"\x1b[31" not in said, "NO_COLOR"
