"""What README shows is what the commands print, but for the seconds that they took."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SECTIONS = {
    text.partition("\n")[0]: commands
    for text in re.split(r"^## ", README, flags=re.MULTILINE)
    if (commands := re.findall(r"^    \$ (shadowvm .*)$", text, re.MULTILINE))
}
DEMO = "shadowvm run memtouch -m 64M --host-memory 4M --swap 128M --check"
SECONDS = re.compile(r"\d+\.\d\d s;")


def _lines(text: str) -> list[str]:
    return [SECONDS.sub("s;", line.strip()) for line in text.splitlines() if line.strip()]


def _run(command: str, directory: Path) -> str:
    words = [sys.executable, "-m", *shlex.split(command)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, cwd=directory, env=env
    )
    return done.stdout


def _shown_after(start: str) -> list[str]:
    """The lines of the indented block that begins after the text `start`."""
    return _lines(README.split(start, 1)[1].lstrip("\n").split("\n\n", 1)[0])


@pytest.mark.parametrize("section", SECTIONS)
def test_shown_commands_print_what_is_shown(section: str, tmp_path: Path) -> None:
    """One after the other: some read files that those before them have written."""
    for command in SECTIONS[section]:
        shown = _shown_after(f"$ {command}\n")
        assert shown
        printed = _lines(_run(command, tmp_path))
        assert [line for line in shown if line not in printed] == []


def test_the_demo_prints_what_is_shown(tmp_path: Path) -> None:
    shown = _shown_after("The guest's own output goes to stdout, the rest to stderr:")
    assert len(shown) == 5
    assert sorted(shown) == sorted(_lines(_run(DEMO, tmp_path)))


def test_the_demo_is_the_command_that_this_file_runs() -> None:
    script = (ROOT / "tools/demo").read_text()
    assert DEMO.replace("memtouch", '"${1:-memtouch}"') in script


def test_the_python_example_prints_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    section = README.split("## From Python", 1)[1]
    blocks = re.findall(r"(?:^    .*\n|^\n)+", section, re.MULTILINE)
    code = textwrap.dedent(next(block for block in blocks if block.strip()))
    exec(compile(code, "README.md", "exec"), {})
    said = re.search(r"^prints `(.*?)`", section, re.MULTILINE)
    assert said is not None
    assert capsys.readouterr().out == said[1] + "\n"
