"""`shadowvm`: one sub-command, one file. Errors of use are one line on stderr and exit status 125."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from ..errors import ConfigError, ShadowvmError, SwapIOError
from .interrupt import Terminated, end_on_signals

EXIT_USAGE = 125
EXIT_SWAP = 126
EXIT_INTERNAL = 127
EXIT_SIGNAL = 128
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
COMMANDS = ("run", "debug", "trace", "stat", "report", "guests", "mutate", "oracle")


class Parser(argparse.ArgumentParser):
    """argparse that reports bad usage in one line, as a ConfigError."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def build_parser() -> Parser:
    """The parser of the whole command line; each command adds its own sub-parser."""
    parser = Parser(prog="shadowvm", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name in COMMANDS:
        import_module(f".{name}", __package__).add_parser(commands)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    try:
        args = build_parser().parse_args(argv)
        status: int = args.main(args)
    except ConfigError as error:
        return _report(error, EXIT_USAGE)
    except SwapIOError as error:
        return _report(error, EXIT_SWAP)
    except ShadowvmError as error:
        return _report(error, EXIT_INTERNAL)
    except Terminated as end:
        number = signal.Signals(end.args[0])
        print(f"shadowvm: ended by {number.name}", file=sys.stderr)
        return EXIT_SIGNAL + number
    except KeyboardInterrupt:
        print("shadowvm: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_BROKEN_PIPE
    return status


def _report(error: ShadowvmError, status: int) -> int:
    # Names that the user gave may hold anything.
    print(f"shadowvm: {error}".replace("\n", "\\n"), file=sys.stderr)
    return status


def entry() -> None:
    """The console script."""
    # A stream that the shell has closed is None: what goes there is not wanted.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    end_on_signals()
    status = main(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError as error:
        # Nobody reads, or the disk is full: at exit, Python would try again and complain at length.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not status:
            status = EXIT_BROKEN_PIPE if isinstance(error, BrokenPipeError) else EXIT_USAGE
    sys.exit(status)
