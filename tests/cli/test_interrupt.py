"""Ctrl-C and SIGTERM: a run ends soon, whatever the guest does and however instructions are counted."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from shadowvm.cli.interrupt import interruptible
from tests.tiny import write_tiny

LOOPS = {
    "jump to itself": "mov al, 10\nout 0xe9, al\nagain: jmp again",
    "store without end": "mov al, 10\nout 0xe9, al\nmov edi, 0x200000\nagain: mov [rdi], al\njmp again",
}


@pytest.mark.parametrize("icount", ["on", "off"])
@pytest.mark.parametrize("name", LOOPS)
def test_a_signal_ends_the_run(name: str, icount: str, tmp_path: Path) -> None:
    guest = write_tiny(tmp_path, LOOPS[name])
    command = [sys.executable, "-m", "shadowvm", "run", guest, "-icount", icount]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)
        assert (process.returncode, process.stderr.read()) == (130, "shadowvm: interrupted\n")


@pytest.mark.parametrize("icount", ["on", "off"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_told_to_end_leaves_no_swap_file(number: signal.Signals, icount: str, tmp_path: Path) -> None:
    guest, swap = write_tiny(tmp_path, LOOPS["jump to itself"]), tmp_path / "swap"
    command = [sys.executable, "-m", "shadowvm", "run", guest, "-icount", icount, "--swap-file", str(swap)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "\n"
        assert swap.exists()
        process.send_signal(number)
        process.wait(timeout=20)
        assert (process.returncode, process.stderr.read()) == (128 + number, f"shadowvm: ended by {number.name}\n")
    assert not swap.exists()


def test_a_lost_kick_is_repeated() -> None:
    enough = threading.Event()
    kicks: list[int] = []

    def kick() -> None:
        kicks.append(0)
        if len(kicks) == 3:
            enough.set()

    before = signal.signal(signal.SIGINT, lambda *_: None)
    with interruptible(kick):
        signal.raise_signal(signal.SIGINT)
        assert enough.wait(20)
    signal.signal(signal.SIGINT, before)
    assert signal.set_wakeup_fd(-1) == -1


def test_other_threads_are_left_alone() -> None:
    done: list[bool] = []

    def body() -> None:
        with interruptible(lambda: None):
            done.append(True)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert done == [True]
