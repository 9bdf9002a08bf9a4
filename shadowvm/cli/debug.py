"""`shadowvm debug`: a guest that stands still where it is told to, and goes back.

Commands come from -x FILE, then from -ex CMD, and then from a prompt, unless --batch or one of them was `quit`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, ShadowvmError
from .run import add_machine_flags, config_from_args

if TYPE_CHECKING:
    from ..config import MachineConfig
    from ..debug.monitor import Monitor
    from ..debug.target import Target
    from ..machine import Machine

PROMPT = "(shadowvm) "
HISTORY_LENGTH = 1000


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("debug", help="step through a guest", description=__doc__, allow_abbrev=False)
    add_machine_flags(parser)
    parser.add_argument("-x", metavar="FILE", action="append", default=[], help="execute the commands in a file")
    parser.add_argument("-ex", metavar="CMD", action="append", default=[], help="execute a command")
    parser.add_argument("--batch", action="store_true", help="no prompt; end when the commands are done")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Debug; returns the exit status: 0, or 1 if a command of -x or -ex was refused."""
    config = config_from_args(args)
    if not config.icount:
        raise ConfigError("debug: positions are counted in instructions: drop -icount off")
    scripted = [*_from_files(args.x), *args.ex]
    from ..debug.monitor import Monitor  # noqa: PLC0415 - after the flags are known to be good
    from ..debug.timeline import Timeline  # noqa: PLC0415

    timeline = Timeline(target_maker(config))
    try:
        monitor = Monitor(timeline)
        status = _execute(monitor, scripted, echo=True)
        if not args.batch and not monitor.done:
            _execute(monitor, _prompt(monitor), echo=False)
        return status if args.batch else 0
    finally:
        timeline.close()


def target_maker(config: MachineConfig) -> Callable[[], Target]:
    """What makes the target, in the process that it is to live in."""

    def make() -> Target:
        from ..debug.target import Target  # noqa: PLC0415
        from ..machine import Machine  # noqa: PLC0415

        def build(output: Callable[[int], None]) -> Machine:
            machine = Machine(config, output)
            machine.host.swap.move_to_memory()
            return machine

        return Target(build)

    return make


def _from_files(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        try:
            with open(path, encoding="utf-8") as file:
                yield from file.read().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"-x: {path}: {getattr(error, 'strerror', None) or 'is no text'}") from None


def _execute(monitor: Monitor, lines: Iterable[str], *, echo: bool) -> int:
    status = 0
    for line in lines:
        if echo and line.strip():
            print(f"{PROMPT}{line.strip()}")
        try:
            for text in monitor.execute(line):
                print(text)
        except KeyboardInterrupt:
            print("interrupted")
        except ShadowvmError as error:
            print(error)
            status = 1
        sys.stdout.flush()
        if monitor.done:
            break
    return status


def _prompt(monitor: Monitor) -> Iterator[str]:
    """Lines from the terminal, with history and completion where there is readline. An empty one repeats the last."""
    from ..debug.commands.table import NAMES  # noqa: PLC0415

    try:
        import readline  # noqa: PLC0415
    except ImportError:
        pass
    else:
        readline.parse_and_bind("tab: complete")
        readline.set_completer(lambda text, n: [*(name for name in NAMES if name.startswith(text)), None][n])
        readline.set_history_length(HISTORY_LENGTH)
    last = ""
    while not monitor.done:
        try:
            line = input(PROMPT)
        except EOFError:
            return
        last = line or last
        yield last
