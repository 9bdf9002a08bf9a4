"""The page of F1: keys, panes, and where the commands are told of."""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.events import Key
from textual.screen import ModalScreen
from textual.widgets import Static

PAGE = """\
RUNNING                               AND BACK
  s  stepi, one instruction             S  reverse-stepi
  n  nexti, calls as a whole            N  reverse-nexti
  p  phase, on in this fault            b  back, to the one before
  f  fin, to the end of the fault
  c  continue, to the next break        r  reverse-continue
  Ctrl-C  interrupt a run

LOOKING
  1 to 9  a pane to the front           Tab, Shift-Tab  from pane to pane
  arrows, PgUp, PgDn, Home, End         z  this pane alone, and all again
  l  look ADDRESS: the walks stay there; look: they follow the faults
  e  explain fault: the last one as a story

THE COMMAND LINE
  :  to get there                       Esc  the keys again
  Tab  complete                         up, down  recall
  Enter  execute, or the last one again
  help lists the commands, help COMMAND tells all of one

MARKS
  ▶  the next instruction, or the event that the machine stands inside
  ▷  an instruction that has left the guest and will be executed again
  ●  a breakpoint, ○  a disabled one    *  a register that has changed
  host-w, mmu-w  bits of an spte: what the host and the MMU would allow

Any key closes this page; q quits."""
_KEYS = r"(?m)(?<=^  )\S(?=  )|(?<= {8})[SNbrz](?=  )|Ctrl-C|Shift-Tab|\bTab\b|Esc|Enter|PgUp|PgDn|Home|End(?!E)|1 to 9"
_SCROLL = ("up", "down", "pageup", "pagedown", "home", "end")


class HelpScreen(ModalScreen[None]):
    """See the module."""

    def compose(self) -> ComposeResult:
        """The page, which scrolls where the screen is small."""
        text = Text(PAGE)
        text.highlight_regex(r"(?m)^(RUNNING|LOOKING|THE COMMAND LINE|MARKS)|AND BACK(?=\n)", "bold yellow")
        text.highlight_regex(_KEYS, "bold")
        with VerticalScroll(id="help"):
            yield Static(text)

    def on_key(self, event: Key) -> None:
        """Any key but those that scroll."""
        if event.key not in _SCROLL:
            event.stop()
            self.dismiss()
