"""`shadowvm debug`: a guest that stands still where it is told to, and goes back.

Commands come from -x FILE and -ex CMD, in their order, and then from a prompt, unless --batch or one was `quit`.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from ..config import parse_size
from ..errors import ConfigError, ShadowvmError
from ..guests import find_image
from .interrupt import Interrupts
from .prompt import prompt
from .run import add_machine_flags, config_from_args

if TYPE_CHECKING:
    from ..debug.monitor import Monitor
    from ..debug.timeline import Timeline

PROMPT = "(shadowvm) "


class Line(NamedTuple):
    """A command of a script, and what to say before a complaint about it."""

    text: str
    where: str = ""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("debug", help="step through a guest", description=__doc__, allow_abbrev=False)
    add_machine_flags(parser)
    script = {"dest": "script", "action": "append", "default": []}
    parser.add_argument("-x", metavar="FILE", type=_from_file, help="execute the commands in a file", **script)
    parser.add_argument("-ex", metavar="CMD", type=lambda text: [Line(text)], help="execute a command", **script)
    parser.add_argument("--tui", "-tui", action="store_true", help="a full-screen view instead of the prompt")
    parser.add_argument("--batch", action="store_true", help="no prompt; end when the commands are done")
    parser.add_argument("-loadvm", "--loadvm", metavar="FILE", help="the machine that savevm has saved, where it was")
    parser.add_argument(
        "--checkpoint-memory", metavar="SIZE", default="1G", help="memory for checkpoints to go back from (default: 1G)"
    )
    parser.set_defaults(main=main)


def _from_file(path: str) -> list[Line]:
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"-x: {path}: {getattr(error, 'strerror', None) or 'is no text'}") from None
    return [Line(text, f"{path}:{number}: ") for number, text in enumerate(lines, 1)]


def main(args: argparse.Namespace) -> int:
    """Debug; returns the exit status: 0, or with --batch 1 if a command was refused."""
    if args.tui:
        return _full_screen(args)
    timeline = _timeline(args)
    from ..debug.monitor import Monitor  # noqa: PLC0415 - after the flags are known to be good

    monitor, interrupts = Monitor(timeline), Interrupts(timeline.interrupt)
    try:
        with interrupts.heard():
            status = _execute_script(monitor, interrupts, [line for lines in args.script for line in lines])
            if args.batch:
                return status
            for line in prompt(monitor, interrupts, PROMPT):
                _execute(monitor, Line(line))
            return 0
    finally:
        timeline.close()


def _full_screen(args: argparse.Namespace) -> int:
    if args.batch:
        raise ConfigError("debug: --batch has no use for --tui")
    try:
        import textual  # noqa: F401, PLC0415 - no part of the smallest installation
    except ImportError:
        raise ConfigError("debug: --tui needs textual: pip install 'shadowvm[tui]'") from None
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("debug: --tui needs a terminal")
    from ..debug.tui.start import run  # noqa: PLC0415

    return run(lambda: _timeline(args), [line.text for lines in args.script for line in lines])


def _timeline(args: argparse.Namespace) -> Timeline:
    """The machine that the flags describe, or that is in a file."""
    from ..debug.checkpoints import MAX_CHECKPOINTS  # noqa: PLC0415

    limits = MAX_CHECKPOINTS, parse_size(args.checkpoint_memory, "--checkpoint-memory")
    if args.loadvm is not None:
        from ..debug.load import load_timeline  # noqa: PLC0415

        return load_timeline(args.loadvm, limits, None if args.guest is None else find_image(args.guest)[0])
    config = config_from_args(args)
    if not config.icount:
        raise ConfigError("debug: positions are counted in instructions: drop -icount off")
    from ..debug.launch import target_maker  # noqa: PLC0415
    from ..debug.timeline import Timeline  # noqa: PLC0415

    return Timeline(target_maker(config), *limits)


def _execute_script(monitor: Monitor, interrupts: Interrupts, lines: list[Line]) -> int:
    """Every line, to the last or to `quit`; an interrupted one is the last. The status: 1 if one was refused."""
    status = 0
    for line in lines:
        if monitor.done:
            break
        if line.text.strip():
            print(f"{PROMPT}{line.text.strip()}")
        if not _execute(monitor, line):
            status = 1
        if interrupts.happened:
            return 1
    return status


def _execute(monitor: Monitor, line: Line) -> bool:
    """One command; whether it was not refused. Ctrl-C stops what runs, and leaves the machine where it is then."""
    done = True
    try:
        lines = monitor.execute(line.text)
    except ShadowvmError as error:
        lines, done = [f"{line.where}{error}"], False
    for text in lines:
        print(text)
    sys.stdout.flush()
    return done
