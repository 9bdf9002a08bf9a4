"""`shadowvm debug` as a script sees it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from select import select

import pytest

from shadowvm.cli.main import main


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


def test_what_cannot_be_debugged_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = (["-x", "/nonexistent"], ["-icount", "off"], ["-m", "0"], ["--host-memory", "1K"])
    for arguments in (["nosuchguest"], *(["hello", *each] for each in wrong)):
        status = main(["debug", *arguments])
        assert (status, capsys.readouterr().err.count("\n")) == (125, 1)


def test_a_complaint_about_a_script_names_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script"
    script.write_text("when\n\nbreak nosuch\nwhen\n")
    assert main(["debug", "hello", "--batch", "-ex", "stepi 3", "-x", str(script)]) == 1
    said = capsys.readouterr().out
    assert f"{script}:3: no tracepoint 'nosuch'" in said
    assert said.splitlines()[-1].startswith("instruction 3, event ")


def test_a_saved_machine_is_loaded_without_its_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "snap")
    assert main(["debug", "hello", "-m", "32M", "--batch", "-ex", "until 2000", "-ex", f"savevm {path}"]) == 0
    look = ["--checkpoint-memory", "64M", "--batch", "-ex", "when", "-ex", "info mtree"]
    assert main(["debug", "hello", "-loadvm", path, *look]) == 0
    said = capsys.readouterr().out
    assert "instruction 2000" in said
    assert "0000000001ffffff (prio 0, ram)" in said
    assert main(["debug", "memtouch", "--loadvm", path]) == 125
    wrong = capsys.readouterr().err
    assert wrong.count("\n") == 1
    assert "is a snapshot of hello, not of memtouch" in wrong


class Terminal:
    """`shadowvm debug` at a pty. rest: what came up behind what was waited for."""

    def __init__(self, *arguments: str) -> None:
        self.rest = ""
        command = [sys.executable, "-m", "shadowvm", "debug", *arguments]
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "dumb"
            os.execv(sys.executable, command)

    def read_to(self, wanted: str, seconds: float = 30) -> str:
        """What comes up to this text. TimeoutError: it does not come."""
        seen = self.rest
        deadline = time.monotonic() + seconds
        while wanted not in seen:
            if time.monotonic() > deadline:
                self.rest = seen
                raise TimeoutError(f"no {wanted!r} in {seen!r}")
            if select([self.fd], [], [], 0.1)[0]:
                seen += os.read(self.fd, 4096).decode()
        before, _, self.rest = seen.partition(wanted)
        return before + wanted

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def command(self, text: str, answer: str) -> str:
        """Type at the prompt, which is waited for: until it is there, somebody else echoes what is typed."""
        self.read_to("(shadowvm) ")
        self.type(text)
        return self.read_to(answer)

    def insist(self, texts: Sequence[str], answer: str) -> str:
        """Type until it is answered: with Ctrl-C a terminal throws away what is under way to and from the program."""
        for _ in range(30):
            for text in texts:
                self.type(text)
                time.sleep(0.01)
            with suppress(TimeoutError):
                return self.read_to(answer, 1)
        raise TimeoutError(f"no {answer!r} in {self.rest!r}")

    def end(self) -> int:
        """The exit status."""
        with suppress(OSError):
            while os.read(self.fd, 4096):
                pass
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_terminal_completes_repeats_and_interrupts() -> None:
    terminal = Terminal("memtouch", "-append", "size=32M passes=2000", "--host-memory", "48M")
    terminal.command("stepi 5\n", "at instruction 5,")
    terminal.command("\n", "at instruction 10,")
    assert "1: break swap_readpage, temporary" in terminal.command("tbrea\tswap_re\t\n", "temporary")
    terminal.command("disable\n", "disable")
    terminal.command("b mai\t\n", "<main>")
    terminal.command("delete\n", "delete")
    terminal.read_to("(shadowvm) ")
    terminal.insist(("c\n", "\x03"), "interrupted, vCPU 0 at")
    terminal.command("half a line", "half a line")
    terminal.type("\x03")
    assert "no command" not in terminal.insist(("when\n",), "instruction ")
    terminal.read_to("(shadowvm) ")
    terminal.type("\x04")
    assert terminal.end() == 0


def test_a_full_screen_needs_a_terminal_and_textual(capsys: pytest.CaptureFixture[str]) -> None:
    for more, said in ((["-tui"], "--tui needs a terminal"), (["--tui", "--batch"], "--batch has no use for --tui")):
        assert main(["debug", "hello", *more]) == 125
        assert capsys.readouterr().err == f"shadowvm: debug: {said}\n"
    without = "import sys; sys.modules['textual'] = None; from shadowvm.cli.main import main; "
    code = f"{without}sys.exit(main(['debug', 'hello', '--tui']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert done.stderr == "shadowvm: debug: --tui needs textual: pip install 'shadowvm[tui]'\n"
