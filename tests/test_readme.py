"""What README shows is what the commands print, but for the seconds that they took."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
COMMANDS = re.findall(r"^    \$ (shadowvm .*)$", README, re.MULTILINE)
DEMO = "shadowvm run memtouch -m 64M --host-memory 4M --swap 128M --check"
SECONDS = re.compile(r"\d+\.\d\d s;")


def _lines(text: str) -> list[str]:
    return [SECONDS.sub("s;", line.strip()) for line in text.splitlines() if line.strip()]


def _run(command: str) -> str:
    words = [sys.executable, "-m", *shlex.split(command)]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout


def _shown_after(start: str) -> list[str]:
    """The lines of the indented block that begins after the text `start`."""
    return _lines(README.split(start, 1)[1].lstrip("\n").split("\n\n", 1)[0])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_shown_command_prints_what_is_shown(command: str) -> None:
    shown = _shown_after(f"$ {command}\n")
    assert shown
    assert [line for line in shown if line not in _lines(_run(command))] == []


def test_the_demo_prints_what_is_shown() -> None:
    shown = _shown_after("The guest's own output goes to stdout, the rest to stderr:")
    assert len(shown) == 5
    assert sorted(shown) == sorted(_lines(_run(DEMO)))


def test_the_demo_is_the_command_that_this_file_runs() -> None:
    script = (Path(__file__).resolve().parents[1] / "tools/demo").read_text()
    assert DEMO.replace("memtouch", '"${1:-memtouch}"') in script


def test_the_python_example_prints_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    section = README.split("## From Python", 1)[1]
    blocks = re.findall(r"(?:^    .*\n|^\n)+", section, re.MULTILINE)
    code = textwrap.dedent(next(block for block in blocks if block.strip()))
    exec(compile(code, "README.md", "exec"), {})
    said = re.search(r"^prints `(.*?)`", section, re.MULTILINE)
    assert said is not None
    assert capsys.readouterr().out == said[1] + "\n"
