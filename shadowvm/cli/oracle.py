"""`shadowvm oracle`: random page tables and operations, done by the MMU and by a flat model that has to agree.

The first difference is cut down to a few operations and saved; --replay does them again. Exit status 1: they differ.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from ..config import MIB, parse_size, parse_smp
from ..errors import ConfigError
from ..params import parse_kvm_params

if TYPE_CHECKING:
    from ..lab.oracle.run import Failure, Report
    from ..lab.oracle.setup import Setup

EXIT_DIFFERENCE = 1
DEFAULT_HOST_MEMORY = "4M"


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    text = "compare the MMU with a flat model, at random"
    parser = commands.add_parser("oracle", help=text, description=__doc__, allow_abbrev=False)
    parser.add_argument("--ops", type=_count, default=100_000, metavar="N", help="operations (default: 100000)")
    parser.add_argument("--seed", type=_count, default=1, metavar="N", help="which random operations (default: 1)")
    parser.add_argument("--mmu", default="shadow", help="shadow or tdp (default: shadow)")
    parser.add_argument("-smp", metavar="N", default="1", help="CPUs, 1 to 16")
    parser.add_argument("--kvm-param", action="append", default=[], metavar="NAME=N,...", help="set knobs of KVM's MMU")
    parser.add_argument(
        "--host-memory",
        metavar="SIZE",
        help=f"memory of the simulated host (default: {DEFAULT_HOST_MEMORY}, more with huge pages)",
    )
    parser.add_argument("--fixed", action="store_true", help="do not draw each machine's knobs; those given never are")
    parser.add_argument("--check", action="store_true", help="verify the MMU's invariants too")
    parser.add_argument("--save", metavar="FILE", default="oracle-case.json", help="where a difference is saved")
    parser.add_argument("--replay", metavar="FILE", help="do the operations of a saved case instead")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON; - for stdout")
    parser.set_defaults(main=main)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise argparse.ArgumentTypeError(f"'{text}' is no count")
    return int(text)


def main(args: argparse.Namespace) -> int:
    """Run, or replay; returns the exit status."""
    from ..lab.oracle.case import read_case  # noqa: PLC0415 - other commands start without it
    from ..lab.oracle.run import Report, replay  # noqa: PLC0415

    started = time.perf_counter()
    if args.replay is not None:
        setup, operations = read_case(args.replay)
        failure = replay(setup, operations)
        report = Report(len(operations), 1, [failure] if failure is not None else [])
        what = args.replay
    else:
        setup = _setup_from_args(args)
        report = _random(setup, args)
        what = f"seed {args.seed}"
    seconds = time.perf_counter() - started
    if args.json is not None:
        _write(args.json, json.dumps(_results(setup, report, seconds), indent=2) + "\n")
    rate = f"{report.operations / seconds:.0f} operations/s"
    counts = f"{report.operations} operations, {report.episodes} machines, {seconds:.1f} s, {rate}"
    print(f"{what}: {counts}: {'DIFFERENCE' if report.failures else 'no difference'}", file=sys.stderr)
    return EXIT_DIFFERENCE if report.failures else 0


def _setup_from_args(args: argparse.Namespace) -> Setup:
    from ..lab.oracle.setup import Setup  # noqa: PLC0415

    memory = parse_size(args.host_memory or DEFAULT_HOST_MEMORY, "--host-memory")
    return Setup(parse_smp(args.smp), args.mmu, max(memory, MIB), parse_kvm_params(args.kvm_param), args.check)


def _given(args: argparse.Namespace) -> set[str]:
    """What the user has said of the machine."""
    parts = ",".join(args.kvm_param).split(",")
    names = {part.partition("=")[0].strip().rpartition(".")[2] for part in parts}
    return names | {"host_memory"} if args.host_memory is not None else names


def _random(setup: Setup, args: argparse.Namespace) -> Report:
    from ..lab.oracle.case import case_text  # noqa: PLC0415
    from ..lab.oracle.run import Report, random_run  # noqa: PLC0415
    from ..lab.oracle.shrink import shrink  # noqa: PLC0415

    report = Report()
    pinned = None if args.fixed else _given(args)
    for report in random_run(setup, args.ops, args.seed, pinned=pinned):
        if report.failures:
            print(f"after {report.operations} operations: {report.failures[0].text}", file=sys.stderr)
            report.failures = [shrink(each.setup, each) for each in report.failures]
            _tell(report.failures[0])
            _write(args.save, case_text(report.failures[0].setup, report.failures[0]))
            print(f"saved: shadowvm oracle --replay {args.save}", file=sys.stderr)
    return report


def _tell(failure: Failure) -> None:
    """The case on stderr."""
    for operation in failure.operations:
        words = (f"{each:#x}" if isinstance(each, int) and each > 9 else str(each) for each in operation)
        print("  " + " ".join(words), file=sys.stderr)
    print(failure.details or failure.text, file=sys.stderr)


def _write(path: str, text: str) -> None:
    if path == "-":
        sys.stdout.write(text)
        return
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def _results(setup: Setup, report: Report, seconds: float) -> dict[str, Any]:
    from ..lab.oracle.case import changed_params  # noqa: PLC0415

    return {
        "operations": report.operations,
        "machines": report.episodes,
        "wall_s": round(seconds, 3),
        "mmu": setup.mmu,
        "smp": setup.smp,
        "kvm_params": changed_params(setup.params),
        "failures": [
            {
                "text": each.text,
                "details": each.details,
                "kvm_params": changed_params(each.setup.params),
                "thp": each.setup.thp,
                "dirty_log": each.setup.dirty_log,
                "operations": each.operations,
            }
            for each in report.failures
        ],
    }
