"""Stores from outside of the guest are seen by everything that has looked at the bytes before."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.addr import Gpa
from shadowvm.devices.debugcon import DebugConsole
from shadowvm.errors import KvmError
from shadowvm.kvm.guest_memory import kvm_read_guest, kvm_write_guest
from shadowvm.lab.invariants import Sanitizer
from shadowvm.machine import Machine
from tests.guest_run import config_for
from tests.tiny import EXIT, write_tiny

MARK = 0x10
REMAP = f"""
mov qword [0x300000], 1
mov qword [0x500000], 2
mov rax, [0x300000]
out {MARK}, al
mov rbx, [0x300000]
shl rax, 4
or rax, rbx
{EXIT}
"""
"""Reads the same address before and after the mark, at which somebody may store."""
CODE = f"""
mov ecx, 2
again: call changed
out {MARK}, al
loop again
{EXIT}
align 16
changed: mov eax, 0x31
ret
"""


def _run(directory: Path, source: str, store: list[tuple[int, bytes]]) -> tuple[int, Machine]:
    machine = Machine(config_for(write_tiny(directory, source)), lambda byte: None)
    sanitizer = Sanitizer(machine)

    def at_mark() -> None:
        def act() -> None:
            for gpa, data in store:
                kvm_write_guest(machine.kvm, Gpa(gpa), data)

        machine.vcpu.do_outside(act)

    mark = DebugConsole(lambda byte: at_mark())
    machine.bus.register(mark, MARK, 1)
    with sanitizer.watching():
        outcome = machine.run()
        machine.close()
        sanitizer.finish()
    return outcome.status, machine


def test_a_page_table_that_is_stored_to_from_outside_maps_elsewhere_at_once(tmp_path: Path) -> None:
    pd_of_4m = 0xB000 + 8 * 1
    entry = (0x400000 | 0xE3).to_bytes(8, "little")
    assert _run(tmp_path, REMAP, [])[0] == 0x11
    assert _run(tmp_path, REMAP, [(pd_of_4m, entry)])[0] == 0x12


def test_code_that_is_stored_to_from_outside_is_executed(tmp_path: Path) -> None:
    machine = Machine(config_for(write_tiny(tmp_path, CODE)), lambda byte: None)
    image = kvm_read_guest(machine.kvm, Gpa(0x100000), 4096)
    at = 0x100000 + image.index(b"\xb8\x31\0\0\0")
    machine.close()
    assert _run(tmp_path, CODE, [])[0] == 0x31
    assert _run(tmp_path, CODE, [(at + 1, b"\x42")])[0] == 0x42


def test_a_range_across_pages_is_stored_as_a_whole(tmp_path: Path) -> None:
    machine = Machine(config_for(write_tiny(tmp_path, CODE)), lambda byte: None)
    data = bytes(range(256)) * 40
    kvm_write_guest(machine.kvm, Gpa(0x200FF3), data)
    assert kvm_read_guest(machine.kvm, Gpa(0x200FF3), len(data)) == data
    with pytest.raises(KvmError, match="no memory slot"):
        kvm_read_guest(machine.kvm, Gpa(64 << 20), 1)
    machine.close()
