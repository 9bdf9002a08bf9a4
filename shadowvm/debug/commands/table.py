"""All commands: what a word means, and help."""

from __future__ import annotations

from inspect import cleandoc
from typing import TYPE_CHECKING

from ...errors import ConfigError
from . import Command, Lines, calls, info, look, points, run, travel, write

if TYPE_CHECKING:
    from ..monitor import Monitor


def find(word: str) -> Command:
    """By name, alias or unambiguous beginning. ConfigError: there is none, or there are several."""
    if word in COMMANDS:
        return COMMANDS[word]
    near = sorted(name for name in COMMANDS if name.startswith(word))
    if len({COMMANDS[name] for name in near}) == 1:
        return COMMANDS[near[0]]
    raise ConfigError(f"'{word}' is " + (f"one of {', '.join(near)}" if near else "no command; help lists them"))


def _help(_monitor: Monitor, text: str) -> Lines:
    """help, h [COMMAND]: all commands, or everything about one"""
    if text:
        return cleandoc(str(find(text).__doc__)).splitlines()
    lines: Lines = []
    for title, commands in GROUPS.items():
        if lines:
            lines.append("")
        lines.append(f"{title}:")
        lines += [f"  {str(command.__doc__).splitlines()[0]}" for command in dict.fromkeys(commands.values())]
    return lines


def _quit(monitor: Monitor, _text: str) -> Lines:
    """quit, q: end"""
    monitor.done = True
    return []


GROUPS: dict[str, dict[str, Command]] = {
    "running": run.COMMANDS,
    "over calls": calls.COMMANDS,
    "time travel": travel.COMMANDS,
    "where to stop": points.COMMANDS,
    "looking": look.COMMANDS,
    "writing": write.COMMANDS,
    "lists": info.COMMANDS,
    "this session": {**dict.fromkeys(("help", "h", "?"), _help), **dict.fromkeys(("quit", "q"), _quit)},
}
COMMANDS: dict[str, Command] = {name: command for each in GROUPS.values() for name, command in each.items()}
NAMES = tuple(COMMANDS)
