"""The access matrices say the same under QEMU as under shadowvm; what is known to differ stands behind exact=1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shadowvm.machine import Machine
from tests.guest_run import config_for

GUESTS = Path(__file__).resolve().parents[2] / "guests"

Boot = Callable[..., tuple[int, str]]


@pytest.mark.parametrize(
    ("name", "append"),
    [
        ("access64", "levels=4 step=997"),
        ("access64", "levels=5 step=997"),
        ("access32", "pae=0 step=211"),
        ("access32", "pae=1 step=2003"),
    ],
)
def test_output_is_that_under_qemu(boot: Boot, name: str, append: str) -> None:
    output = bytearray()
    machine = Machine(config_for(name, append, cpu="max"), output.append)
    try:
        status = machine.run().status
    finally:
        machine.close()
    assert boot(GUESTS / name / f"{name}.elf", append, cpu="max") == (status, output.decode())
    assert status == 0


@pytest.mark.parametrize(
    ("name", "append", "message"),
    [
        ("access32", "pae=2", "access32: pae and exact are 0 or 1, step is not 0\n"),
        ("access32", "step=0", "access32: pae and exact are 0 or 1, step is not 0\n"),
        ("access32", "levels=4", "access32: unknown parameter: levels=4\n"),
        ("access64", "levels=3", "access64: levels=3: outside 4..5\n"),
        ("access64", "levels=5", "access64: this CPU has no five levels\n"),
    ],
)
def test_what_cannot_be_done_ends_with_2(boot: Boot, name: str, append: str, message: str) -> None:
    assert boot(GUESTS / name / f"{name}.elf", append, cpu="qemu64") == (2, message)
