"""`shadowvm report`: one HTML page from a trace that `shadowvm run --trace FILE` wrote.

The page needs no other file and no network. The same trace gives the same page.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .output import output_file
from .trace import parse_moment, warn_if_truncated

if TYPE_CHECKING:
    from ..report.analysis import Options

_MOST = 2000
"""Bins of time or address: more than a screen has dots."""
TERMINAL = (80, 40)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "report", help="make an HTML page of a trace file", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("file", metavar="FILE", help="what shadowvm run --trace wrote")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("-o", "--output", metavar="FILE", help="the page to write; - for stdout")
    where.add_argument("--heatmap", action="store_true", help="print the residency heat map alone, as digits")
    parser.add_argument("--resol", nargs=2, metavar=("TIME", "ADDRESS"), help="bins of the heat map (default: 320 160)")
    parser.add_argument(
        "--time_range",
        nargs=2,
        metavar=("FROM", "TO"),
        help="virtual time, as 1315475, 1315us or 0.0013s; TO is not in",
    )
    parser.add_argument(
        "--address_range", nargs=2, metavar=("FROM", "TO"), help="gpas, as 0x100000 or 1M, of heat map and hottest gfns"
    )
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Make the page; returns the exit status."""
    options = _options(args)
    if _is_same(args.output, args.file):
        raise ConfigError(f"-o: {args.output} is the trace itself")
    from ..report.analysis import analyse  # noqa: PLC0415 - other commands start without it
    from ..trace.reader import open_trace  # noqa: PLC0415

    trace = open_trace(args.file)
    analysis = analyse(trace, options)
    if args.heatmap:
        from ..report.heat import digit_grid  # noqa: PLC0415

        sys.stdout.write(digit_grid(analysis.residency))
    else:
        from ..report.page import render  # noqa: PLC0415

        page = render(analysis)
        with output_file(args.output) as output:
            output.write(page)
            output.flush()
    warn_if_truncated(trace)
    return 0


def _is_same(output: str | None, file: str) -> bool:
    there = output is not None and os.path.exists(output) and os.path.exists(file)
    return there and os.path.samefile(str(output), file)


def _options(args: argparse.Namespace) -> Options:
    from ..report.analysis import Options  # noqa: PLC0415

    chosen = Options(TERMINAL) if args.heatmap else Options()
    if args.resol is not None:
        chosen = chosen._replace(resol=(_bins(args.resol[0]), _bins(args.resol[1])))
    if args.time_range is not None:
        moments = parse_moment(args.time_range[0]), parse_moment(args.time_range[1])
        chosen = chosen._replace(time_range=_ordered("--time_range", moments))
    if args.address_range is not None:
        addresses = _address(args.address_range[0]), _address(args.address_range[1])
        chosen = chosen._replace(address_range=_ordered("--address_range", addresses))
    return chosen


def _ordered(flag: str, pair: tuple[int, int]) -> tuple[int, int]:
    if pair[0] >= pair[1]:
        raise ConfigError(f"{flag}: nothing is from {pair[0]:#x} to {pair[1]:#x}")
    return pair


def _bins(text: str) -> int:
    if not re.fullmatch("[0-9]{1,4}", text, re.ASCII) or not 1 <= int(text) <= _MOST:
        raise ConfigError(f"--resol: '{text}' is no number of bins, 1 to {_MOST}")
    return int(text)


def _address(text: str) -> int:
    match = re.fullmatch("(0[xX][0-9a-fA-F]{1,13}|[0-9]{1,15})([KMGT]?)", text, re.ASCII)
    if match is None:
        raise ConfigError(f"--address_range: '{text}' is no address, such as 0x100000 or 1M")
    return min(int(match[1], 0 if match[1][:2].lower() == "0x" else 10) * _UNITS[match[2]], 1 << 52)
