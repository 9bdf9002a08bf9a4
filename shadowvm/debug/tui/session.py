"""What the full-screen view does, without a screen: execute a line, and know what to show afterwards.

Commands are the monitor's, and `look`. One thread at a time may call execute(); interrupt() may be called meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ...errors import ModelBug, ShadowvmError
from ..breaks import AddressBreak
from ..panes import Look, Panes
from ..worker import Gone

if TYPE_CHECKING:
    from ..monitor import Monitor
    from ..position import Stop
    from ..timeline import Timeline

WORDS = ("look",)
HELP = """\
this view:
  look [gpa] ADDRESS: keep the walks at an address; an expression is evaluated again at each stop
  look: let the walks follow the faults again"""
_GONE = "the machine's process is gone: restart, back or replay_seek go on from a checkpoint, quit ends"


class Result(NamedTuple):
    """What a line came to. lines: to print; refused: they say why not. panes: None if the machine is gone."""

    lines: list[str]
    refused: bool
    stop: Stop
    panes: Panes | None
    changed: frozenset[str]
    breaks: dict[int, bool]


class Session:
    """See the module. symbols: the guest's, for completion."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.symbols: list[str] = self.timeline.call("view", "symbol_names")
        self._look = ("fault", "")
        self._registers: dict[str, int] = {}
        self._changed: frozenset[str] = frozenset()
        self._stop: tuple[Stop, int] | None = None

    @property
    def timeline(self) -> Timeline:
        """The monitor's."""
        return self.monitor.timeline

    def interrupt(self) -> None:
        """Stop a run as soon as possible."""
        self.timeline.interrupt()

    def execute(self, line: str) -> Result:
        """Do what a line says. Never raises: what is refused, and a bug of ours too, is told in the result."""
        self.timeline.interrupted = False
        refused = True
        try:
            lines, refused = self._dispatch(line.strip()), False
        except Gone:
            lines = []
        except Exception as error:  # the screen is to survive it
            lines = [_one_line(error)]
        try:
            panes = self._panes()
        except Gone:
            panes, lines = None, [*lines, _GONE]
        except ShadowvmError as error:
            panes, lines = None, [*lines, _one_line(error)]
        return Result(lines, refused, self.timeline.stop, panes, self._changed, self._breaks())

    def _dispatch(self, line: str) -> list[str]:
        word, _, rest = line.partition(" ")
        if word == "look":
            return self._set_look(rest.strip())
        lines = self.monitor.execute(line)
        if word == "loadvm":
            self.symbols = self.timeline.call("view", "symbol_names")
        if word in ("help", "h", "?") and not rest.strip():
            lines = [*lines, "", *HELP.splitlines()]
        return lines

    def _set_look(self, text: str) -> list[str]:
        kind, _, rest = text.partition(" ")
        if kind in ("gva", "gpa") and rest.strip():
            chosen = (kind, rest.strip())
        else:
            chosen = ("gva", text) if text and text != "fault" else ("fault", "")
        if chosen[1]:
            self.monitor.number(chosen[1])
        self._look = chosen
        return []

    def _panes(self) -> Panes:
        kind, text = self._look
        stop = self.timeline.stop
        try:
            look = Look(kind, self.monitor.number(text)) if text else Look()
        except Gone:
            raise
        except ShadowvmError:  # it was a number at another stop
            look = Look()
        vcpu = self.monitor.vcpu if self.monitor.vcpu is not None else stop.vcpu
        panes: Panes = self.timeline.call("view", "panes", look, vcpu)
        if (stop, panes.vcpu) != self._stop:
            before = self._registers
            self._changed = frozenset(
                name for name, value in panes.registers.items() if before and before.get(name) != value
            )
            self._registers, self._stop = panes.registers, (stop, panes.vcpu)
        return panes

    def _breaks(self) -> dict[int, bool]:
        """Addresses of breakpoints, and whether they are enabled."""
        return {
            each.what.address: each.enabled
            for _, each in self.monitor.breakpoints.items()
            if isinstance(each.what, AddressBreak)
        }


def _one_line(error: Exception) -> str:
    """What the user did wrong, or the end of a traceback if it was us."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, ShadowvmError) and not isinstance(error, ModelBug):
        return text
    return f"internal error: {text.splitlines()[-1]}"
