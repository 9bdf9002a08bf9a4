"""The parts of the screen: a pane of lines, a row of tabs, and the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.events import Key, Resize
from textual.geometry import Size
from textual.markup import escape
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Input

from ..complete import common

MAX_HISTORY = 1000


class Pane(ScrollView, can_focus=True):
    """Lines under a title of one row. Arrows, PgUp and PgDn scroll. key: that brings it to the front.

    tabs: the titles of all panes that share its place, its own among them, when only one of them is seen.
    """

    class Resized(Message):
        """There is another room for lines."""

    def __init__(self, name: str, key: str, title: str) -> None:
        super().__init__(id=name)
        self.title, self.key = title, key
        self.tabs: tuple[tuple[str, str], ...] = ()
        self.lines: list[Text] = []
        self.note = ""
        self.entitle()

    def entitle(self, note: str | None = None) -> None:
        """Its title, with a note behind, or with the tabs beside."""
        self.note = self.note if note is None else note
        words = [f"[b]{self.key} {self.title}[/b]" + (f"  {escape(self.note)}" if self.note else "")]
        if self.tabs:
            words = [f"[b r] {key} {title} [/]" if key == self.key else f" {key} {title} " for key, title in self.tabs]
        self.border_title = "".join(words)

    def show(self, lines: Sequence[Text], at: int | None = None) -> None:
        """Put lines in; scroll as little as makes line `at` visible, with a few around it."""
        self.lines = list(lines)
        width = max((line.cell_len for line in self.lines), default=0)
        self.virtual_size = Size(width, len(self.lines))
        self.refresh()
        if at is not None:
            self.call_after_refresh(self._bring, at)

    def _bring(self, at: int) -> None:
        height = self.scrollable_content_region.height
        top, margin = round(self.scroll_y), min(2, max((height - 1) // 2, 0))
        if at - margin < top:
            self.scroll_to(y=max(at - margin, 0), animate=False, force=True)
        elif at + margin >= top + height:
            self.scroll_to(y=at + margin + 1 - height, animate=False, force=True)
        if self.show_vertical_scrollbar:  # it has not heard of what was scrolled while the pane was hidden
            self.vertical_scrollbar.position = self.scroll_y

    def render_line(self, y: int) -> Strip:
        """A line of the screen: only what is seen is drawn."""
        left, top = self.scroll_offset
        width, style = self.scrollable_content_region.width, self.rich_style
        if top + y >= len(self.lines):
            return Strip.blank(width, style)
        line, console = self.lines[top + y], self.app.console
        base = line.style if isinstance(line.style, Style) else console.get_style(line.style)
        strip = Strip(line.render(console)).apply_style(base)  # rich leaves it to a console to do this
        return strip.crop_extend(left, left + width, style).apply_style(style)

    @property
    def room(self) -> tuple[int, int]:
        """(columns, rows) for lines."""
        return max(self.scrollable_content_region.width, 1), max(self.scrollable_content_region.height, 1)

    @property
    def plain(self) -> str:
        """Its lines, for who wants to read them."""
        return "\n".join(line.plain for line in self.lines)

    def on_resize(self, _event: Resize) -> None:
        """Lines may have to be folded elsewhere."""
        self.post_message(self.Resized())


class Prompt(Input):
    """The command line, with history (up, down) and completion (Tab). An empty line repeats the last command."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "complete", "complete", key_display="Tab"),
        Binding("up", "older", "older", key_display="↑"),
        Binding("enter", "submit", "execute", key_display="Enter"),
    ]
    """For the footer: on_key acts on them, in the order in which they are typed among other keys."""

    class Command(Message):
        """A line was entered."""

        def __init__(self, line: str) -> None:
            super().__init__()
            self.line = line

    class Choices(Message):
        """A word can be completed in several ways."""

        def __init__(self, words: list[str]) -> None:
            super().__init__()
            self.words = words

    def __init__(self, complete: Callable[[str], list[str]]) -> None:
        super().__init__(
            id="prompt", compact=True, select_on_focus=False, placeholder="command (Tab completes, help lists them)"
        )
        self._complete = complete
        self._history: list[str] = []
        self._at = 0

    async def _on_key(self, event: Key) -> None:
        own = {"tab": self._complete_word, "enter": self._enter, "up": self._older, "down": self._newer}.get(event.key)
        if own is None:
            await super()._on_key(event)
            return
        event.stop()
        event.prevent_default()
        own()

    def _older(self) -> None:
        self._recall(-1)

    def _newer(self) -> None:
        self._recall(1)

    def _recall(self, by: int) -> None:
        self._at = min(max(self._at + by, 0), len(self._history))
        self.value = self._history[self._at] if self._at < len(self._history) else ""
        self.cursor_position = len(self.value)

    def _complete_word(self) -> None:
        """As far as it is clear; then show the choices."""
        head, tail = self.value[: self.cursor_position], self.value[self.cursor_position :]
        found = self._complete(head)
        longest = common(found)
        if len(found) == 1:
            longest += " "
        if len(longest) > len(head):
            self.value = longest + tail
            self.cursor_position = len(longest)
        elif len(found) > 1:
            start = max(head.rfind(" "), head.rfind("*")) + 1
            self.post_message(self.Choices([line[start:] for line in found]))

    def _enter(self) -> None:
        line = self.value.strip() or (self._history[-1] if self._history else "")
        if line and (not self._history or self._history[-1] != line):
            self._history = [*self._history, line][-MAX_HISTORY:]
        self._at = len(self._history)
        self.value = ""
        if line:
            self.post_message(self.Command(line))
