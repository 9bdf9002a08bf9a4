"""A timeline that stands where a snapshot was saved."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import ConfigError
from .launch import target_maker
from .poke import parse_inputs
from .snapshot import Snapshot, read_snapshot
from .timeline import Timeline


def load_timeline(
    path: str, limits: tuple[int, int], name: str | None = None, poll: Callable[[], bool] | None = None
) -> Timeline:
    """Of a file. limits: as for Timeline; name: of the guest that it has to be, None for any; poll: whether to give up.

    Raises:
        ConfigError: the file is refused, or running the machine again came to another state.
    """
    snapshot = read_snapshot(path)
    if name not in (None, snapshot.config.name):
        raise ConfigError(f"{path}: is a snapshot of {snapshot.config.name}, not of {name}")
    timeline = Timeline(target_maker(snapshot.config), *limits)
    timeline.poll = poll
    try:
        _replay(path, timeline, snapshot)
    except BaseException:
        timeline.close()
        raise
    return timeline


def _replay(path: str, timeline: Timeline, snapshot: Snapshot) -> None:
    inputs = parse_inputs(snapshot.inputs)
    if inputs is None:
        raise ConfigError(f"{path}: has inputs that this program cannot repeat")
    if inputs:
        timeline.repeat(inputs)
    stop = timeline.go() if snapshot.ended else timeline.go_to(snapshot.position)
    if stop.kind == "interrupt":
        raise ConfigError(f"{path}: interrupted at {stop.position}")
    if stop.position != snapshot.position or timeline.call("state_hash") != snapshot.state:
        raise ConfigError(
            f"{path}: the run comes to another state at {stop.position}: this program is not the one that saved it"
        )
