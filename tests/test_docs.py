"""The tutorials in docs/: every command is run again, and prints what is shown."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))


def refresh(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(ROOT / "tools/refresh_docs"), *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_command_prints_what_is_shown(path: Path) -> None:
    done = refresh("--check", str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_line_that_is_not_so_is_noticed_and_mended(tmp_path: Path) -> None:
    path = tmp_path / "short.md"
    text = "Text.\n\n    $ shadowvm debug hello\n    (shadowvm) p 2 + 3\n    0x5\n\nMore.\n\n    (shadowvm) when\n"
    path.write_text(text.replace("    0x5\n", "    0x6\n"))
    assert "-    0x6\n+    0x5\n" in refresh("--check", str(path)).stdout
    assert refresh(str(path)).returncode == 0
    assert path.read_text() == text + "    instruction 0, event 0\n"
