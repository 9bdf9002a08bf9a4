"""Ways in which a guest ends the machine: triple fault, reset, power-off, and the messages of port 0x8900."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.config import MIB
from shadowvm.machine import Reason
from tests.guest_run import config_for, run_checked
from tests.tiny import EXIT, gate, write_tiny

AFTER = f"mov eax, 5\n{EXIT}"
"""What must no longer run."""

SHUTDOWN = "mov edx, 0x8900\nmov esi, text\nmov ecx, 8\ncld\nrep outsb\n"
TRIPLE = "lidt [none]\nud2\n"
DATA = 'text: db "Shutdown"\nalign 8\nnone: dw 0\ndq 0\n'

ENDINGS = {
    "triple fault without an IDT": (TRIPLE, Reason.TRIPLE_FAULT, 127),
    "triple fault by a stack that is absent": (
        f"{gate(14)}handler:\nmov rsp, 0x7f0000000000\nmov eax, [rsp]\n",
        Reason.TRIPLE_FAULT,
        127,
    ),
    "triple fault by INT": ("lidt [none]\nint 0x80\n", Reason.TRIPLE_FAULT, 127),
    "keyboard controller": ("mov al, 0xfe\nout 0x64, al\n", Reason.RESET, 127),
    "port 0xcf9": ("mov dx, 0xcf9\nmov al, 6\nout dx, al\n", Reason.RESET, 127),
    "fast reset by port 0x92": ("mov al, 1\nout 0x92, al\n", Reason.RESET, 127),
    "power-off by ACPI": ("mov dx, 0x604\nmov ax, 0x2000\nout dx, ax\n", Reason.POWER_OFF, 0),
    "Shutdown at port 0x8900": (SHUTDOWN, Reason.POWER_OFF, 0),
}


@pytest.mark.parametrize("memory", [64 * MIB, 2 * MIB], ids=["plenty", "little"])
@pytest.mark.parametrize("name", ENDINGS)
def test_the_run_ends(tmp_path: Path, name: str, memory: int) -> None:
    source, reason, status = ENDINGS[name]
    result = run_checked(config_for(write_tiny(tmp_path, f"{source}{AFTER}{DATA}"), host_memory=memory))
    assert result.law is None, result.report
    assert result.outcome is not None
    assert (result.outcome.reason, result.outcome.status) == (reason, status)


@pytest.mark.parametrize(
    "source",
    [
        "mov edx, 0x8900\nmov esi, text\nmov ecx, 7\ncld\nrep outsb\n",
        "mov al, 0xdf\nout 0x64, al\n",
        "mov dx, 0xcf9\nmov al, 2\nout dx, al\n",
        "mov al, 2\nout 0x92, al\n",
        "mov dx, 0x604\nmov ax, 0x0001\nout dx, ax\n",
    ],
    ids=["Shutdow", "A20 by the keyboard controller", "hard reset prepared", "A20 by port 0x92", "SCI_EN"],
)
def test_the_run_goes_on(tmp_path: Path, source: str) -> None:
    result = run_checked(config_for(write_tiny(tmp_path, f"{source}{AFTER}{DATA}")))
    assert result.outcome is not None
    assert (result.outcome.reason, result.outcome.status) == (Reason.DEBUG_EXIT, 5)
