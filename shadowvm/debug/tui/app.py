"""The full-screen view. It draws what a session found; a run goes on in a thread, so that the screen stays alive."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import ClassVar, NamedTuple

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Footer, Label, Static

from ..complete import completions
from . import render
from .help import HelpScreen
from .session import WORDS, Result, Session
from .widgets import Pane, Prompt

PROMPT = "(shadowvm) "
BUSY_S = 0.1
"""How often the place that a run has come to is shown."""
MAX_QUEUE, MAX_OUTPUT = 16, 600
WALKS, BELOW = ("guest", "host", "memory"), ("events", "output", "console")
"""Panes that share a place where there is little room."""
TITLES = {
    "code": "code",
    "registers": "registers",
    "guest": "guest walk",
    "shadow": "shadow",
    "host": "host",
    "memory": "memory",
    "events": "events",
    "output": "output",
    "console": "console",
}
WIDE, HUGE, TALL, HIGH = 118, 170, 34, 48
"""Columns from which on panes stand side by side, and rows."""


class _Task(NamedTuple):
    """A line to execute. typed: its output is to be seen."""

    line: str
    typed: bool


def _key(keys: str, action: str, text: str = "", display: str | None = None) -> Binding:
    """A key that acts before any widget hears of it, so that what is typed fast stays in order."""
    return Binding(keys, action, text, show=bool(text), key_display=display, priority=True)


class DebuggerApp(App[int]):
    """See the module. name: of the guest; commands: to begin with."""

    CSS_PATH = "app.tcss"
    TITLE = "shadowvm"
    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [  # noqa: RUF012 - so is textual's own
        (0, "-narrow"),
        (WIDE, "-wide"),
        (HUGE, "-huge"),
    ]
    VERTICAL_BREAKPOINTS = [  # noqa: RUF012
        (0, "-short"),
        (TALL, "-tall"),
        (HIGH, "-high"),
    ]
    BINDINGS: ClassVar[list[BindingType]] = [
        _key("s", "do('stepi')", "stepi"),
        _key("n", "do('nexti')", "nexti"),
        _key("p", "do('phase')", "phase"),
        _key("b", "do('back')", "back"),
        _key("f", "do('fin')", "fin"),
        _key("c", "do('continue')", "cont"),
        _key("r", "do('reverse-continue')", "rev-c"),
        _key("colon,i", "type('')", "cmd", ":"),
        _key("question_mark", "help"),
        _key("q", "quit", "quit"),
        _key("S", "do('reverse-stepi')"),
        _key("N", "do('reverse-nexti')"),
        _key("l", "type('look ')"),
        _key("e", "tell('explain fault')"),
        _key("z", "zoom"),
        *(_key(str(number), f"front({number})") for number in range(1, 10)),
        _key("escape", "keys", "keys", "Esc"),
        Binding("f1", "help", "help", key_display="F1"),
        Binding("ctrl+c", "interrupt", "interrupt", show=False, priority=True),
    ]

    def __init__(self, session: Session, name: str, commands: Sequence[str] = ()) -> None:
        # With the terminal's own colours textual leaves them all out under NO_COLOR, else it makes them grey.
        super().__init__(ansi_color=True if os.environ.get("NO_COLOR") else None)
        self.session = session
        self.guest = name
        self.busy = False
        self.result: Result | None = None
        self.panes = {name: Pane(name, str(at), title) for at, (name, title) in enumerate(TITLES.items(), 1)}
        self._said: list[Text] = []
        self._front = {WALKS: "guest", BELOW: "events"}
        self._queue: asyncio.Queue[_Task] = asyncio.Queue()
        self._first = [_Task("", False), *(_Task(line, True) for line in commands)]
        self._leaving: int | None = None
        self._was_busy = self._redraw_asked = self._gone = False

    def compose(self) -> ComposeResult:
        """Everything; the style sheet and _arrange() say what is seen."""
        panes = self.panes
        yield Static(id="status")
        with Horizontal(id="top"):
            yield Vertical(panes["code"], panes["registers"], id="left")
            with Vertical(id="right"):
                yield Vertical(panes["guest"], panes["shadow"], id="walks")
                yield Vertical(panes["host"], panes["memory"], id="side")
        yield Horizontal(panes["events"], panes["output"], panes["console"], id="bottom")
        yield Horizontal(Label(PROMPT), Prompt(self._complete), id="line")
        yield Footer(compact=True, show_command_palette=False)

    async def on_mount(self) -> None:
        """Begin."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            with suppress(RuntimeError, ValueError):  # not in the main thread
                loop.add_signal_handler(number, self.leave, 128 + number)
        self.screen.set_focus(self.panes["code"])
        self._arrange()
        self.set_interval(BUSY_S, self._show_progress)
        for task in self._first:
            self._queue.put_nowait(task)
        self.run_worker(self._serve())

    async def _serve(self) -> None:
        """Execute what is asked for, one after the other, each in a thread."""
        while True:
            task = await self._queue.get()
            self.busy = True
            result = await asyncio.to_thread(self.session.execute, task.line)
            self.busy = False
            self._note_output(task, result)
            self._gone = result.panes is None
            if result.panes is not None:
                self.result = result
            self.draw()
            if self.session.monitor.done or self._leaving is not None:
                self.exit(self._leaving or 0)
                return

    @property
    def is_idle(self) -> bool:
        """Everything that was asked for is done and drawn."""
        return not self.busy and self._queue.empty()

    def _note_output(self, task: _Task, result: Result) -> None:
        if task.line:
            self._said.append(Text(PROMPT + task.line, style="dim"))
        self._said += [render.output_text(line, refused=result.refused) for line in result.lines]
        del self._said[:-MAX_OUTPUT]
        if task.line and (task.typed or result.refused or result.panes is None):
            self._bring("output")
        elif task.line:
            self._bring("events")

    def draw(self) -> None:
        """Everything, from the last result."""
        self._draw_output()
        self._draw_status()
        if self.result is None or self.result.panes is None:
            return
        result, panes = self.result, self.result.panes
        inside = result.stop.vcpu == panes.vcpu and not result.stop.position.between
        code, at = render.code_text(panes, result.breaks, inside, self.panes["code"].room[0])
        other = f"  vCPU {panes.vcpu}" if panes.vcpu != (result.stop.vcpu or 0) else ""
        self.panes["code"].entitle(panes.function + other)
        self.panes["code"].show(code, at)
        self.panes["shadow"].title = "TDP" if panes.nested else TITLES["shadow"]
        self.panes["shadow"].entitle(panes.why)
        columns = max((self.panes["registers"].room[0] + 1) // 21, 1)
        self.panes["registers"].entitle(render.flags_text(panes.registers["rflags"]))
        self.panes["registers"].show(render.registers_text(panes.registers, result.changed, columns))
        for name, rows in (
            ("guest", panes.guest),
            ("shadow", panes.shadow),
            ("host", panes.host),
            ("memory", panes.memory),
        ):
            width, height = self.panes[name].room
            lines = render.rows_text(rows, width, details=True)
            if len(lines) > height:
                lines = render.rows_text(rows, width, details=False)
            self.panes[name].show(lines)
        events = render.events_text(panes.events, result.stop, self.panes["events"].room[0])
        self.panes["events"].show(events, len(events) - 1)
        console = panes.output.decode("latin-1").splitlines()
        self.panes["console"].show([Text(line) for line in console], max(len(console) - 1, 0))

    def _draw_output(self) -> None:
        width = self.panes["output"].room[0]
        lines = [line for text in self._said for line in text.wrap(self.console, width)]
        self.panes["output"].show(lines, max(len(lines) - 1, 0))

    def _draw_status(self) -> None:
        status = self.query_one("#status", Static)
        status.set_class(self.busy or self._gone, "busy")
        if self.busy:
            here = self.session.timeline.position
            status.update(Text(f" {self.guest}  running... {here}  (Ctrl-C interrupts)", style="bold", no_wrap=True))
        elif self._gone:
            status.update(Text(f" {self.guest}  the machine's process is gone", style="bold", no_wrap=True))
        elif self.result is not None:
            status.update(render.status_text(self.guest, self.result.stop))

    def _show_progress(self) -> None:
        """A short command is over before this is called twice."""
        was, self._was_busy = self._was_busy, self.busy
        if was and self.busy:
            self._draw_status()

    def _arrange(self) -> None:
        """Which panes are seen at this size, and with which tabs."""
        width, height = self.size
        narrow, huge = width < WIDE, width >= HUGE
        roomy = not narrow or height >= HIGH
        self._share(WALKS, None if roomy else self._front[WALKS])
        self.query_one("#walks").set_class(not roomy and self._front[WALKS] != "guest", "hidden")
        self.query_one("#side").set_class(not roomy and self._front[WALKS] == "guest", "hidden")
        front = self._front[BELOW]
        if narrow or huge:
            self._share(BELOW, None if huge else front)
        else:
            self._share(BELOW[:1], None)
            self._share(BELOW[1:], front if front != "events" else "output")

    def _share(self, names: Sequence[str], front: str | None) -> None:
        """Show the one in front, or all if there is none."""
        tabs = tuple((self.panes[name].key, TITLES[name].split()[0]) for name in names) if front else ()
        for name in names:
            self.panes[name].tabs = tabs
            self.panes[name].set_class(front is not None and name != front, "hidden")
            self.panes[name].entitle()

    def _bring(self, name: str) -> None:
        """To the front of its place."""
        for names in self._front:
            if name in names:
                self._front[names] = name
        if name == "shadow":
            self._front[WALKS] = "guest"
        self._arrange()

    def on_pane_resized(self) -> None:
        """Fold lines for the new room, once for all panes."""
        if not self._redraw_asked:
            self._redraw_asked = True
            self.call_after_refresh(self._redraw)

    def _redraw(self) -> None:
        self._redraw_asked = False
        self._arrange()
        self.draw()

    def on_prompt_command(self, message: Prompt.Command) -> None:
        """A typed line."""
        self._ask(_Task(message.line, typed=True))

    def on_prompt_choices(self, message: Prompt.Choices) -> None:
        """Several completions."""
        self._said.append(Text("  ".join(message.words)))
        self._bring("output")
        self._draw_output()

    def _complete(self, text: str) -> list[str]:
        return completions(text, self.session.symbols, WORDS)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """In the command line letters are letters; on the help page they close it."""
        if len(self.screen_stack) > 1:
            return action in ("interrupt", "dismiss", "leave")
        typing = isinstance(self.focused, Prompt)
        if action == "keys":
            return typing
        mine = ("do", "tell", "type", "help", "quit", "zoom", "front")
        return not (typing and action in mine) or action == "help"

    def _ask(self, task: _Task) -> None:
        if self._queue.qsize() < MAX_QUEUE:
            self._queue.put_nowait(task)

    def action_do(self, line: str) -> None:
        """Execute a command that moves the machine."""
        self._ask(_Task(line, typed=False))

    def action_tell(self, line: str) -> None:
        """Execute one whose output matters."""
        self._ask(_Task(line, typed=True))

    def action_type(self, text: str) -> None:
        """Go to the command line."""
        prompt = self.query_one(Prompt)
        prompt.value = text or prompt.value
        prompt.cursor_position = len(prompt.value)
        self.screen.set_focus(prompt)

    def action_keys(self) -> None:
        """From the command line to the keys."""
        self.screen.set_focus(self.panes["code"])

    def action_front(self, number: int) -> None:
        """Bring a pane to the front, and the focus to it."""
        name = list(TITLES)[number - 1]
        self._bring(name)
        self.screen.set_focus(self.panes[name])

    def action_zoom(self) -> None:
        """The pane with the focus alone, or all again."""
        if self.screen.maximized is not None:
            self.screen.minimize()
        elif isinstance(self.focused, Pane):
            self.screen.maximize(self.focused)

    def action_help(self) -> None:
        """F1."""
        self.push_screen(HelpScreen())

    def action_interrupt(self) -> None:
        """Stop a run, and forget what was to follow; with none, empty the command line."""
        while not self._queue.empty():
            self._queue.get_nowait()
        if self.busy:
            self.session.interrupt()
        else:
            self.query_one(Prompt).value = ""

    async def action_quit(self) -> None:
        """End, after what runs has been stopped."""
        self.leave(0)

    def leave(self, status: int) -> None:
        """End with a status."""
        self._leaving = status
        if self.busy:
            self.session.interrupt()
        else:
            self.exit(status)
