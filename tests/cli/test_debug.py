"""`shadowvm debug` as a script sees it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from select import select


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


def test_a_complaint_about_a_script_names_file_and_line(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("when\n\nbreak nosuch\nwhen\n")
    done = debug("hello", "--batch", "-ex", "stepi 3", "-x", str(script))
    assert done.returncode == 1
    assert f"{script}:3: no tracepoint 'nosuch'" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("instruction 3, event ")


def test_a_saved_machine_is_loaded_without_its_flags(tmp_path: Path) -> None:
    path = tmp_path / "snap"
    debug("hello", "-m", "32M", "--batch", "-ex", "until 2000", "-ex", f"savevm {path}")
    done = debug(
        "hello", "-loadvm", str(path), "--checkpoint-memory", "64M", "--batch", "-ex", "when", "-ex", "info mtree"
    )
    assert "instruction 2000" in done.stdout, done.stderr
    assert "0000000001ffffff (prio 0, ram)" in done.stdout
    wrong = debug("memtouch", "--loadvm", str(path))
    assert (wrong.returncode, wrong.stderr.count("\n")) == (125, 1)
    assert "is a snapshot of hello, not of memtouch" in wrong.stderr


class Terminal:
    """`shadowvm debug` at a pty."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "shadowvm", "debug", *arguments]
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "dumb"
            os.execv(sys.executable, command)

    def read_to(self, wanted: str) -> str:
        """What comes up to this text."""
        seen = ""
        deadline = time.monotonic() + 30
        while wanted not in seen:
            assert time.monotonic() < deadline, f"no {wanted!r} in {seen!r}"
            if select([self.fd], [], [], 1)[0]:
                seen += os.read(self.fd, 4096).decode()
        return seen

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def end(self) -> int:
        """The exit status."""
        with suppress(OSError):
            while os.read(self.fd, 4096):
                pass
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_terminal_completes_repeats_and_interrupts() -> None:
    terminal = Terminal("memtouch", "-append", "size=32M passes=2000", "--host-memory", "48M")
    terminal.read_to("(shadowvm) ")
    terminal.type("stepi 5\n")
    terminal.read_to("at instruction 5,")
    terminal.type("\n")
    terminal.read_to("at instruction 10,")
    terminal.type("tbrea\tswap_re\t\n")
    assert "1: break swap_readpage, temporary" in terminal.read_to("temporary")
    terminal.type("disable\nb mai\t\n")
    terminal.read_to("<main>")
    terminal.type("delete\nc\n")
    terminal.read_to("c\r\n")
    terminal.type("\x03")
    terminal.read_to("interrupted, vCPU 0 at")
    terminal.type("half a line")
    terminal.read_to("half a line")
    terminal.type("\x03")
    terminal.read_to("(shadowvm) ")
    terminal.type("when\n")
    terminal.read_to("instruction ")
    terminal.type("\x04")
    assert terminal.end() == 0


def test_a_full_screen_needs_a_terminal_and_textual() -> None:
    for more, said in ((["-tui"], "--tui needs a terminal"), (["--tui", "--batch"], "--batch has no use for --tui")):
        done = debug("hello", *more)
        assert (done.returncode, done.stderr) == (125, f"shadowvm: debug: {said}\n")
    without = "import sys; sys.modules['textual'] = None; from shadowvm.cli.main import main; "
    code = f"{without}sys.exit(main(['debug', 'hello', '--tui']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert done.stderr == "shadowvm: debug: --tui needs textual: pip install 'shadowvm[tui]'\n"
