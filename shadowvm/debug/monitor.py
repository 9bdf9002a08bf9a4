"""The command language of the debugger: QEMU's monitor words, rr's for time, and our own for faults.

    monitor = Monitor(timeline)
    for line in monitor.execute("break kvm_page_fault if error_code & 2"): print(line)

A refused command raises ConfigError with one line. Numbers are as in C; sums such as `rip+8` take registers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from ..errors import ConfigError
from ..trace.filter import find_tracepoint
from .breaks import AddressBreak, PointBreak, Watch
from .explain import KINDS
from .position import Position, Stop

if TYPE_CHECKING:
    from .timeline import Timeline

Lines = list[str]
AnyBreak: TypeAlias = "AddressBreak | PointBreak | Watch"
Command = Callable[["Monitor", str], Lines]
_WATCHES = ("spte", "sptep", "pte", "page")
_END_OF_FAULT = "kvm_entry"


class Monitor:
    """A session. breaks: by number. vcpu: the CPU that is looked at, None for the one that runs."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.breaks: dict[int, AnyBreak] = {}
        self.vcpu: int | None = None
        self.done = False
        self._next = 1
        self._said = 0

    def execute(self, line: str) -> Lines:
        """What one command line prints. ConfigError: it cannot be done."""
        line = line.strip()
        if not line or line.startswith("#"):
            return []
        word, _, rest = line.partition(" ")
        word, slash, form = word.partition("/")
        command = _find(word)
        return command(self, f"/{form} {rest.strip()}" if slash else rest.strip())

    def number(self, text: str) -> int:
        """A sum of numbers and registers of the current vCPU."""
        registers: dict[str, int] | None = None
        total, sign = 0, 1
        for token in re.findall(r"[+-]|[^+\-\s]+", text):
            if token in "+-":
                sign = 1 if token == "+" else -1
                continue
            name = token.lstrip("$").lower()
            if re.fullmatch(r"[a-z]\w*", name):
                registers = registers or self.timeline.call("view", "registers", self.vcpu)
                if name not in registers:
                    raise ConfigError(f"'{token}' is no register")
                value = registers[name]
            else:
                value = _integer(token)
            total, sign = total + sign * value, 1
        if not text.strip():
            raise ConfigError("a number is missing")
        return total & (1 << 64) - 1

    def stopped(self, stop: Stop | None) -> Lines:
        """How a stop is told, after what the guest has said on the way."""
        lines = self._new_output()
        if stop is None:
            return [*lines, "no break was hit before: at the start of history"]
        if stop.kind == "exit":
            return [*lines, f"the guest has ended: {stop.text}", f"at {stop.position}"]
        where = f"vCPU {stop.vcpu}" if stop.vcpu is not None else stop.task or "start"
        number = f"break {stop.number}, " if stop.number is not None else ""
        lines.append(f"{number}{where} at {stop.position}")
        if stop.text:
            lines.append(f"  {stop.text}")
        elif stop.kind in ("instructions", "interrupt", "breakpoint"):
            lines += [f"  {text}" for text in self.timeline.call("view", "disassembly", 1, None, stop.vcpu)]
        return lines

    def _new_output(self) -> Lines:
        said: bytes = self.timeline.call("view", "output")
        new, self._said = said[self._said :], max(self._said, len(said))
        return [f"guest: {line}" for line in new.decode("latin-1").splitlines()]


def _integer(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise ConfigError(f"'{text}' is no number") from None


def _find(word: str) -> Command:
    """By name, alias or unambiguous beginning."""
    if word in _COMMANDS:
        return _COMMANDS[word]
    near = sorted({name for name in _COMMANDS if name.startswith(word)})
    if len(near) == 1:
        return _COMMANDS[near[0]]
    raise ConfigError(f"'{word}' is " + (f"one of {', '.join(near)}" if near else "no command; help lists them"))


def _count(monitor: Monitor, text: str) -> int:
    return monitor.number(text) if text else 1


def _help(_monitor: Monitor, text: str) -> Lines:
    """help: this list"""
    if text:
        return [str(_find(text).__doc__)]
    return sorted({str(command.__doc__) for command in _COMMANDS.values()})


def _continue(monitor: Monitor, _text: str) -> Lines:
    """c, continue: run to the next break"""
    return monitor.stopped(monitor.timeline.go(breaks=list(monitor.breaks.values())))


def _stepi(monitor: Monitor, text: str) -> Lines:
    """stepi, s [N]: execute N instructions of any vCPU"""
    here = monitor.timeline.position.instructions
    return monitor.stopped(monitor.timeline.go(until=here + _count(monitor, text)))


def _until(monitor: Monitor, text: str) -> Lines:
    """until N | until event N: run to instruction, or event, N"""
    if text.startswith("event"):
        wanted = monitor.number(text.removeprefix("event"))
        if wanted <= monitor.timeline.position.events:
            raise ConfigError(f"event {wanted} is not ahead; use replay_seek")
        return monitor.stopped(monitor.timeline.go(until_event=wanted))
    wanted = monitor.number(text)
    if wanted <= monitor.timeline.position.instructions:
        raise ConfigError(f"instruction {wanted} is not ahead; use replay_seek")
    return monitor.stopped(monitor.timeline.go(until=wanted))


def _phase(monitor: Monitor, text: str) -> Lines:
    """phase, forward [N]: to the Nth event from here, inside the current fault or not"""
    return monitor.stopped(monitor.timeline.go(until_event=monitor.timeline.position.events + _count(monitor, text)))


def _fin(monitor: Monitor, _text: str) -> Lines:
    """fin: to the end of the current fault, where the vCPU enters the guest again"""
    vcpu = monitor.timeline.stop.vcpu
    wanted = f"vcpu_id == {vcpu}" if vcpu is not None else ""
    return monitor.stopped(monitor.timeline.go(breaks=[PointBreak(0, _END_OF_FAULT, wanted)]))


def _back(monitor: Monitor, text: str) -> Lines:
    """back [N]: N events back"""
    return monitor.stopped(monitor.timeline.back_event(_count(monitor, text)))


def _reverse_stepi(monitor: Monitor, text: str) -> Lines:
    """reverse-stepi, rsi [N]: N instructions back"""
    return monitor.stopped(monitor.timeline.back(_count(monitor, text)))


def _reverse_continue(monitor: Monitor, _text: str) -> Lines:
    """reverse-continue, rc: to the last hit of a break before here"""
    return monitor.stopped(monitor.timeline.back_to_break(list(monitor.breaks.values())))


def _seek(monitor: Monitor, text: str) -> Lines:
    """replay_seek N | replay_seek event N: to an instruction or event of this run, behind or ahead"""
    timeline = monitor.timeline
    if text.startswith("event"):
        wanted = monitor.number(text.removeprefix("event"))
        return monitor.stopped(timeline.seek_event(wanted))
    wanted = monitor.number(text)
    if wanted <= timeline.position.instructions:
        return monitor.stopped(timeline.back(timeline.position.instructions - wanted))
    return monitor.stopped(timeline.go(until=wanted))


def _when(monitor: Monitor, _text: str) -> Lines:
    """when: where in the run this is"""
    return [str(monitor.timeline.position)]


def _checkpoint(monitor: Monitor, _text: str) -> Lines:
    """checkpoint: remember this position, for restart"""
    return [f"checkpoint {monitor.timeline.keep()} at {monitor.timeline.position}"]


def _restart(monitor: Monitor, text: str) -> Lines:
    """restart [N]: to checkpoint N, or to the start of the run"""
    if not text:
        return monitor.stopped(monitor.timeline.go_to(Position(0, 0)))
    number, kept = monitor.number(text), monitor.timeline.kept()
    if number not in kept:
        raise ConfigError(f"there is no checkpoint {number}")
    return monitor.stopped(monitor.timeline.go_to(kept[number]))


def _break(monitor: Monitor, text: str) -> Lines:
    """b, break POINT [if FILTER] | break *ADDRESS: stop at a tracepoint, or before an instruction"""
    name, _, rest = text.partition(" ")
    if not name:
        raise ConfigError("break: name a tracepoint, such as kvm_page_fault, or give *ADDRESS")
    if name.startswith("*"):
        return _add(monitor, AddressBreak(monitor._next, monitor.number(text[1:])))
    where = re.sub(r"^if\b", "", rest.strip()).strip()
    point = PointBreak(monitor._next, find_tracepoint(name).name, where)
    point.validate()
    return _add(monitor, point)


def _watch(monitor: Monitor, text: str) -> Lines:
    """watch spte GFN | sptep HPA | pte HVA | page PFN: stop when it changes"""
    kind, _, value = text.partition(" ")
    if kind not in _WATCHES:
        raise ConfigError(f"watch: '{kind}' is none of {', '.join(_WATCHES)}")
    return _add(monitor, Watch(monitor._next, kind, monitor.number(value)))


def _add(monitor: Monitor, new: AnyBreak) -> Lines:
    monitor.breaks[new.number] = new
    monitor._next += 1
    return [f"{new.number}: {new}"]


def _delete(monitor: Monitor, text: str) -> Lines:
    """delete [N]: forget break N, or all"""
    if not text:
        monitor.breaks.clear()
        return []
    if monitor.breaks.pop(monitor.number(text), None) is None:
        raise ConfigError(f"there is no break {text}")
    return []


def _explain(monitor: Monitor, text: str) -> Lines:
    """explain [KIND] ADDRESS | explain fault: everything about a gva, gpa, gfn, hva, pfn or sptep; the last fault"""
    kind, _, rest = text.partition(" ")
    if kind == "fault":
        found: Lines = monitor.timeline.call("view", "story")
        return found
    if kind not in KINDS:
        kind, rest = "gva", text
    lines: Lines = monitor.timeline.call("view", "explain", kind, monitor.number(rest), monitor.vcpu)
    return lines


def _page(monitor: Monitor, text: str) -> Lines:
    """page [-s] GVA: the guest's walk; with -s the whole chain to frame and spte"""
    whole = text.startswith("-s")
    lines = _explain(monitor, f"gva {text.removeprefix('-s')}")
    end = next((at for at, line in enumerate(lines) if line.startswith("gpa")), len(lines))
    return lines if whole else lines[: end + 1]


def _x(monitor: Monitor, text: str) -> Lines:
    """x /NFS GVA, xp /NFS GPA: memory; i as format disassembles"""
    return _dump(monitor, text, "memory")


def _xp(monitor: Monitor, text: str) -> Lines:
    """xp /NFS GPA: guest-physical memory"""
    return _dump(monitor, text, "physical")


def _dump(monitor: Monitor, text: str, view: str) -> Lines:
    match = re.fullmatch(r"(?:/(\d*)([xduci]?)([bhwg]?)\s+)?(.+)", text)
    if match is None or match[4].startswith("/"):
        raise ConfigError("x: the form is x /NFS ADDRESS, such as x /4xg rsp")
    count, form, size = int(match[1] or 1), match[2] or "x", {"b": 1, "h": 2, "w": 4, "g": 8, "": 4}[match[3] or ""]
    address = monitor.number(match[4])
    if not 0 < count <= 4096:
        raise ConfigError(f"x: {count} is out of range (1 to 4096)")
    if form == "i":
        lines: Lines = monitor.timeline.call("view", "disassembly", count, address, monitor.vcpu)
        return lines
    arguments = (address, count * size, monitor.vcpu) if view == "memory" else (address, count * size)
    data: bytes | None = monitor.timeline.call("view", view, *arguments)
    if data is None:
        raise ConfigError(f"{address:#x}: no memory is there")
    return [_row(data[at : at + 16], address + at, size, form) for at in range(0, len(data), 16)]


def _row(data: bytes, address: int, size: int, form: str) -> str:
    values = [int.from_bytes(data[at : at + size], "little", signed=form == "d") for at in range(0, len(data), size)]
    if form == "c":
        texts = [repr(chr(value & 0xFF)) for value in values]
    else:
        texts = [f"{value:#0{2 + 2 * size}x}" if form == "x" else str(value) for value in values]
    return f"{address:016x}: {' '.join(texts)}"


def _translate(monitor: Monitor, text: str, view: str) -> Lines:
    arguments = (monitor.number(text), monitor.vcpu) if view == "gva2gpa" else (monitor.number(text),)
    found: int | None = monitor.timeline.call("view", view, *arguments)
    return ["Unmapped" if found is None else f"{view[-3:]}: {found:#x}"]


def _gva2gpa(monitor: Monitor, text: str) -> Lines:
    """gva2gpa GVA: translate through the guest's tables"""
    return _translate(monitor, text, "gva2gpa")


def _gpa2hva(monitor: Monitor, text: str) -> Lines:
    """gpa2hva GPA: translate through the memslots"""
    return _translate(monitor, text, "gpa2hva")


def _cpu(monitor: Monitor, text: str) -> Lines:
    """cpu N: look at vCPU N"""
    number = monitor.number(text)
    monitor.timeline.call("view", "registers", number)
    monitor.vcpu = number
    return []


def _info(monitor: Monitor, text: str) -> Lines:
    """info registers|cpus|memslots|shadow|host|notifiers|stats|breaks|checkpoints"""
    what = text.strip()
    call = monitor.timeline.call
    if what in ("cpus", "memslots", "shadow", "host", "notifiers"):
        lines: Lines = call("view", what)
        return lines
    if what == "registers":
        values: dict[str, int] = call("view", "registers", monitor.vcpu)
        pairs = [f"{name}={value:016x}" if value >> 16 else f"{name}={value:x}" for name, value in values.items()]
        return [" ".join(pairs[at : at + 4]) for at in range(0, len(pairs), 4)]
    if what == "stats":
        counters: dict[str, int] = call("view", "counters")
        return [f"{name:<32}{value:>12}" for name, value in counters.items() if value]
    if what == "breaks":
        return [f"{number}: {each}" for number, each in monitor.breaks.items()]
    if what == "checkpoints":
        kept = [f"{number}: {position}" for number, position in monitor.timeline.kept().items()]
        return [*kept, f"and {len(monitor.timeline.checkpoints)} automatic ones"]
    raise ConfigError(f"info: '{what}' is unknown; {_info.__doc__}")


def _state_hash(monitor: Monitor, _text: str) -> Lines:
    """hash: SHA-256 of the machine's state"""
    return [monitor.timeline.call("state_hash")]


def _quit(monitor: Monitor, _text: str) -> Lines:
    """q, quit: end"""
    monitor.done = True
    return []


_COMMANDS: dict[str, Command] = {
    **dict.fromkeys(("help", "h", "?"), _help),
    **dict.fromkeys(("continue", "c", "cont"), _continue),
    **dict.fromkeys(("stepi", "s", "step", "si"), _stepi),
    "until": _until,
    **dict.fromkeys(("phase", "forward"), _phase),
    "fin": _fin,
    "back": _back,
    **dict.fromkeys(("reverse-stepi", "rsi"), _reverse_stepi),
    **dict.fromkeys(("reverse-continue", "rc"), _reverse_continue),
    "replay_seek": _seek,
    "when": _when,
    "checkpoint": _checkpoint,
    "restart": _restart,
    **dict.fromkeys(("break", "b"), _break),
    "watch": _watch,
    "delete": _delete,
    "explain": _explain,
    "page": _page,
    "x": _x,
    "xp": _xp,
    "gva2gpa": _gva2gpa,
    "gpa2hva": _gpa2hva,
    "cpu": _cpu,
    "info": _info,
    "hash": _state_hash,
    **dict.fromkeys(("quit", "q"), _quit),
}
NAMES = tuple(_COMMANDS)
