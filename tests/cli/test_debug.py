"""`shadowvm debug` as a script sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def debug(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shadowvm", "debug", *arguments]
    return subprocess.run(command, capture_output=True, text=True, input=stdin, check=False)


def test_commands_from_a_file_and_from_the_command_line(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("# to the first fault\nbreak kvm_page_fault\nc\n")
    done = debug("hello", "--batch", "-x", str(script), "-ex", "when")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1:3] == ["(shadowvm) break kvm_page_fault", "1: break kvm_page_fault"]
    assert lines[-1].startswith("instruction 0, event ")


def test_the_prompt_reads_from_a_pipe_and_ends_with_it() -> None:
    done = debug("hello", stdin="c\nquit\nwhen\n")
    assert done.returncode == 0, done.stderr
    assert "guest: Hello from a guest in long mode." in done.stdout
    assert "the guest has ended: debug-exit, status 0" in done.stdout
    assert "instruction" not in done.stdout.rpartition("ended")[2].rpartition("(shadowvm)")[2]


def test_a_refused_command_is_one_line_and_status_1() -> None:
    done = debug("hello", "--batch", "-ex", "frobnicate", "-ex", "when")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "instruction 0, event 0"
    assert "Traceback" not in done.stdout + done.stderr


def test_what_cannot_be_debugged_is_refused() -> None:
    wrong = (["-x", "/nonexistent"], ["-icount", "off"], ["-m", "0"], ["--host-memory", "1K"])
    for arguments in (["nosuchguest"], *(["hello", *each] for each in wrong)):
        done = debug(*arguments)
        assert (done.returncode, done.stderr.count("\n")) == (125, 1), done.stderr
