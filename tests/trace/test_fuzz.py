"""Whatever the bytes: events, or one line. tools/fuzz_traces does more of it."""

from __future__ import annotations

import random
import runpy
from collections import Counter
from pathlib import Path

fuzzer = runpy.run_path(str(Path(__file__).resolve().parents[2] / "tools/fuzz_traces"))


def test_damaged_and_invented_files_give_events_or_one_line(tmp_path: Path) -> None:
    rng, path, good = random.Random(7), tmp_path / "trace", fuzzer["whole_trace"]()
    assert fuzzer["judge"](path, good) == "whole"
    verdicts = Counter(fuzzer["judge"](path, fuzzer["invent"](rng, good)) for _ in range(200))
    assert len(verdicts) > 15
    assert verdicts["whole"] < 70
    assert verdicts["cut short"] > 5
