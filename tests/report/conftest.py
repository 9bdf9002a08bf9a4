"""Timelines of hand-made traces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from shadowvm.report.analysis import Analysis, Options, analyse
from shadowvm.report.timeline import Timeline, load
from shadowvm.trace.reader import open_trace
from tests.report.traces import E, write_trace


@pytest.fixture
def timeline_of(tmp_path: Path) -> Callable[..., Timeline]:
    """The timeline of a list of events."""

    def make(events: Sequence[E], **config: Any) -> Timeline:
        return load(open_trace(write_trace(tmp_path / "trace", events, **config)))

    return make


@pytest.fixture
def analysis_of(tmp_path: Path) -> Callable[..., Analysis]:
    """The analysis of a list of events."""

    def make(events: Sequence[E], options: Options = Options(), **config: Any) -> Analysis:  # noqa: B008
        return analyse(open_trace(write_trace(tmp_path / "trace", events, **config)), options)

    return make
