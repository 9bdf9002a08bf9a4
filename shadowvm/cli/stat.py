"""`shadowvm stat`: kvm_stat for a guest that is run, or for a trace file.

Rates are per second of virtual time, in which each instruction takes a nanosecond. A guest's output goes to stderr.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .interrupt import interruptible
from .output import user_error
from .run import add_machine_flags, announce_compilation, config_from_args

if TYPE_CHECKING:
    from ..machine import Machine
    from ..trace.stat import Counter, View

MAGIC = b"SVMTRACE"
DEFAULT_INTERVAL = 10_000_000


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("stat", help="count events, as kvm_stat does", description=__doc__, allow_abbrev=False)
    add_machine_flags(parser, "a bundled guest, an image, or a trace of shadowvm run --trace")
    parser.add_argument("-t", "--tracepoints", action="store_true", help="hits of kvm's tracepoints; so is a trace's")
    parser.add_argument("-d", "--debugfs", action="store_true", help="KVM's counters (default for a guest)")
    parser.add_argument("-f", "--fields", default="", metavar="REGEX", help="only what the expression matches")
    parser.add_argument("-i", "--interval", metavar="N", help="show them about every N instructions, and at the end")
    parser.add_argument("-l", "--log", action="store_true", help="a line for each interval (default: of 10000000)")
    parser.add_argument("-1", "--once", "--batch", dest="batch", action="store_true", help="names and totals alone")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Count and print; returns the exit status."""
    interval = _interval(args)
    try:
        re.compile(args.fields)
    except re.error as error:
        raise ConfigError(f"-f: '{args.fields}' is no regular expression: {error}") from None
    if args.guest is not None and _is_trace(args.guest):
        return _stat_trace(args, interval)
    return _stat_guest(args, interval)


def _interval(args: argparse.Namespace) -> int:
    text = args.interval
    if text is None:
        return DEFAULT_INTERVAL if args.log else 0
    if not re.fullmatch("[1-9][0-9]{0,17}", text, re.ASCII):
        raise ConfigError(f"-i: '{text}' is no number of instructions")
    return int(text)


def _is_trace(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False  # a bundled guest, or find_image() says what is wrong


def _view(args: argparse.Namespace) -> View:
    from ..trace.stat import Batch, Log, Table  # noqa: PLC0415 - other commands start without it

    return Batch() if args.batch else Log() if args.log else Table()


def _stat_trace(args: argparse.Namespace, interval: int) -> int:
    from ..trace.reader import open_trace  # noqa: PLC0415
    from ..trace.stat import chosen, trace_samples  # noqa: PLC0415
    from .trace import warn_if_truncated  # noqa: PLC0415

    trace, view = open_trace(args.guest), _view(args)
    if args.debugfs:
        raise ConfigError("-d: a trace has events, not KVM's counters")
    for now, totals in trace_samples(trace, interval):
        sys.stdout.write(view.show(now, chosen(totals, args.fields)))
    warn_if_truncated(trace)
    return 0


def _stat_guest(args: argparse.Namespace, interval: int) -> int:
    config = config_from_args(args)
    if interval and not config.icount:
        raise ConfigError("-i, -l: intervals are of instructions: drop -icount off")
    from ..machine import Machine  # noqa: PLC0415

    announce_compilation()
    machine = Machine(config, _to_stderr)
    started = time.perf_counter()
    sampler = _Sampler(machine, args, interval)
    with sampler.watching(), nullcontext() if config.icount else interruptible(machine.vcpus[0].engine.request_stop):
        try:
            outcome = machine.run()
            sampler.show()
        finally:
            machine.close()
    seconds = time.perf_counter() - started
    text = f"{outcome.reason.value}, status {outcome.status}" + (f": {outcome.text}" if outcome.text else "")
    print(f"{config.name}: {text}, {seconds:.2f} s", file=sys.stderr)
    return outcome.status


def _to_stderr(byte: int) -> None:
    sys.stderr.buffer.write(bytes((byte,)))
    if byte == 0x0A:
        sys.stderr.buffer.flush()


class _Sampler:
    """Prints the counters of a running machine every so often."""

    def __init__(self, machine: Machine, args: argparse.Namespace, interval: int) -> None:
        from ..trace.stat import Counter  # noqa: PLC0415

        self._machine, self._fields = machine, args.fields
        self._counter: Counter | None = Counter() if args.tracepoints else None
        self._debugfs = args.debugfs or not args.tracepoints
        self._view = _view(args)
        self._interval, self._next = interval, interval

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count, and print at the end of intervals, inside the block."""
        from ..events import REGISTRY, attached  # noqa: PLC0415

        for vcpu in self._machine.vcpus if self._interval else ():
            vcpu.on_quantum = self._look
        if self._counter is None:
            yield
            return
        heard = [each for each in REGISTRY.values() if each.system in ("kvm", "kvmmmu")]
        with attached(self._counter.sink, heard):
            yield

    def _look(self) -> None:
        if self._machine.instructions >= self._next:
            self._next = (self._machine.instructions // self._interval + 1) * self._interval
            self.show()

    def show(self) -> None:
        """Print what there is now."""
        from ..kvm import stats  # noqa: PLC0415
        from ..trace.stat import chosen  # noqa: PLC0415

        machine = self._machine
        totals = dict(self._counter.totals) if self._counter is not None else {}
        if self._debugfs:
            totals |= stats.as_dict(machine.kvm.stat, (vcpu.stat for vcpu in machine.vcpus))
        with user_error("standard output"):
            sys.stdout.write(self._view.show(machine.instructions, chosen(totals, self._fields)))
            sys.stdout.flush()
