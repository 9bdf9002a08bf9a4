"""One small machine for all tests of a file, which they move about in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shadowvm.debug.timeline import Timeline
from tests.debug.machines import target_of


@pytest.fixture(scope="module")
def timeline() -> Iterator[Timeline]:
    timeline = Timeline(target_of)
    yield timeline
    timeline.close()
