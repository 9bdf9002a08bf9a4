"""`shadowvm`: one sub-command, one file. Errors of use are one line on stderr and exit status 125."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from ..errors import ConfigError

EXIT_USAGE = 125
EXIT_INTERNAL = 127
EXIT_INTERRUPTED = 130
COMMANDS = ("run", "guests")


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
        print(f"shadowvm: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("shadowvm: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status


def entry() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))
