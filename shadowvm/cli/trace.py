"""`shadowvm trace`: what is in a trace that `shadowvm run --trace FILE` wrote, as ftrace would print it.

A trace whose run was killed is printed up to its last whole chunk, and a line on stderr says so.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .output import binary_file

if TYPE_CHECKING:
    from ..events import Tracepoint
    from ..trace.chunk import TraceEvent
    from ..trace.filter import Test
    from ..trace.reader import Trace

BATCH = 1024
_NS = {"": 1, "ns": 1, "us": 1000, "ms": 1_000_000, "s": 1_000_000_000}


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("trace", help="print a trace file", description=__doc__, allow_abbrev=False)
    parser.add_argument("file", metavar="FILE", help="what shadowvm run --trace wrote")
    parser.add_argument(
        "-e", dest="events", action="append", default=[], metavar="EVENT,...", help="these events; * and ? match names"
    )
    parser.add_argument(
        "-f", "--filter", default="", metavar="FILTER", help="hits whose fields are so, as ftrace's: 'gfn == 0x123'"
    )
    parser.add_argument("--vcpu", type=int, metavar="N", help="events of this vCPU's thread")
    parser.add_argument("--task", metavar="NAME", help="events of these tasks; * and ? match names")
    parser.add_argument(
        "--time_range",
        nargs=2,
        metavar=("FROM", "TO"),
        help="virtual time, as 1315475, 1315us or 0.0013s; TO is not in",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object a line")
    form.add_argument("--perfetto", metavar="OUT", help="write a .pftrace for ui.perfetto.dev instead")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Print; returns the exit status."""
    from ..trace.reader import open_trace  # noqa: PLC0415 - other commands start without it

    choose = _Choice(args)
    trace = open_trace(args.file)
    events = choose.events(trace)
    if args.perfetto is not None:
        _write_perfetto(args.perfetto, trace, events)
        return 0
    lines = map(_json_line(trace), events) if args.json else _ftrace_lines(trace, events)
    for line in lines:
        sys.stdout.write(line)
    warn_if_truncated(trace)
    return 0


def _write_perfetto(path: str, trace: Trace, events: Iterator[TraceEvent]) -> None:
    from ..trace.perfetto import packets  # noqa: PLC0415

    with binary_file(path) as output:
        pieces: list[bytes] = []
        for packet in packets(trace.header, events, trace.fields_of):
            pieces.append(packet)
            if len(pieces) >= BATCH:
                output.write(b"".join(pieces))
                pieces.clear()
        output.write(b"".join(pieces))
    warn_if_truncated(trace)


def warn_if_truncated(trace: Trace) -> None:
    """After a pass: one line if the file was cut short."""
    if trace.truncated:
        sys.stdout.flush()
        print(f"shadowvm: {trace.path}: cut short, after {trace.count} events in whole chunks", file=sys.stderr)


def _ftrace_lines(trace: Trace, events: Iterator[TraceEvent]) -> Iterator[str]:
    from ..trace.ftrace import HEADER, layout  # noqa: PLC0415

    yield HEADER
    for event in events:
        yield f"{layout(event.task, event.pid, event.vcpu, event.now)}: {event.name}: {trace.text(event)}\n"


def _json_line(trace: Trace) -> Callable[[TraceEvent], str]:
    """`fields` has the arguments by name, structures as objects."""

    def line(event: TraceEvent) -> str:
        fields = dict(zip(trace.fields_of(event.name), map(_plain, event.args), strict=True))
        head = {"now": event.now, "task": event.task, "pid": event.pid, "vcpu": event.vcpu, "event": event.name}
        return json.dumps({**head, "fields": fields}) + "\n"

    return line


def _plain(value: Any) -> Any:
    return {name: _plain(each) for name, each in value._asdict().items()} if hasattr(value, "_asdict") else value


class _Choice:
    """The events that the flags ask for."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.vcpu, self.task = args.vcpu, args.task
        self.start, self.end = map(parse_moment, args.time_range) if args.time_range else (0, 1 << 63)
        patterns = [name for each in args.events for name in each.split(",")]
        self.names = _names(patterns)
        self.tests: dict[str, Test] = {}
        if args.filter.strip():
            self.tests = _tests(args.filter, self.names, [each for each in patterns if not _is_glob(each)])
            self.names = frozenset(self.tests)

    def events(self, trace: Trace) -> Iterator[TraceEvent]:
        """In order."""
        for event in trace.events(self.names):
            if self._has(event):
                yield event

    def _has(self, event: TraceEvent) -> bool:
        if not self.start <= event.now < self.end or self.vcpu not in (None, event.vcpu):
            return False
        if self.task is not None and not fnmatchcase(event.task, self.task):
            return False
        test = self.tests.get(event.name)
        if test is None:
            return True
        try:
            return test(event.args)
        except TypeError:
            return False  # a field of another type than the value


def parse_moment(text: str) -> int:
    """A virtual time in ns, which are instructions."""
    match = re.fullmatch(r"([0-9]{1,18})(?:\.([0-9]{1,9}))?(ns|us|ms|s|)", text, re.ASCII)
    if match is None or (match[2] and match[3] in ("", "ns")):
        raise ConfigError(f"--time_range: '{text}' is no time, such as 1315475, 1315us or 0.0013s")
    unit = _NS[match[3]]
    return int(match[1]) * unit + int((match[2] or "").ljust(9, "0")) * unit // 10**9


def _is_glob(name: str) -> bool:
    return not set("*?[").isdisjoint(name)


def _names(patterns: list[str]) -> frozenset[str] | None:
    """The tracepoints that are meant; None for all."""
    from ..events import REGISTRY  # noqa: PLC0415
    from ..trace.filter import find_tracepoint  # noqa: PLC0415

    found: set[str] = set()
    for pattern in patterns:
        if _is_glob(pattern):
            names = {each.name for each in REGISTRY.values() if _is_like(each, pattern)}
        else:
            names = {find_tracepoint(pattern).name}
        if not names:
            raise ConfigError(f"-e: no tracepoint's name is like '{pattern}'")
        found |= names
    return frozenset(found) if patterns else None


def _is_like(tracepoint: Tracepoint, pattern: str) -> bool:
    name = tracepoint.name
    return fnmatchcase(name, pattern) or fnmatchcase(f"{tracepoint.system}:{name}", pattern)


def _tests(text: str, names: frozenset[str] | None, named: list[str]) -> dict[str, Test]:
    """The filter for each tracepoint that has its fields; those that the user named must have them."""
    from ..events import REGISTRY  # noqa: PLC0415
    from ..trace.filter import compile_filter  # noqa: PLC0415

    tests: dict[str, Test] = {name: compile_filter(name, text) for name in named}
    refusal = None
    for name in sorted(REGISTRY if names is None else names):
        try:
            tests[name] = compile_filter(name, text)
        except ConfigError as error:
            refusal = error
    if not tests and refusal is not None:
        raise refusal
    return tests
