"""KVM_RUN and the registers, as a small VMM sees them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shadowvm.api import ExitReason, Host, KvmError, Regs
from tests.api.vm import MIB, vcpu_with_code, vm_with_memory

HELLO = "mov dx, 0x3f8\nadd al, bl\nadd al, '0'\nout dx, al\nin ax, dx\nmov [0x8000], ax\nhlt"


@pytest.fixture
def host() -> Iterator[Host]:
    with Host(memory=4 * MIB, swap=4 * MIB) as host:
        yield host


def test_out_is_an_exit_and_in_waits_for_its_answer(host: Host) -> None:
    vm = vm_with_memory(host)
    vcpu = vcpu_with_code(vm, HELLO)
    vcpu.set_regs(rax=2 | 0xABCD << 32, rbx=3)
    run = vcpu.run()
    assert run.exit_reason is ExitReason.IO
    assert run.io is not None
    assert (run.io.port, run.io.size, run.io.is_write, run.io.data) == (0x3F8, 1, True, ord("5"))
    run = vcpu.run()
    assert run.io is not None
    assert (run.io.port, run.io.size, run.io.is_write) == (0x3F8, 2, False)
    run.io.data = 0x1234
    assert vcpu.run().exit_reason is ExitReason.HLT
    assert vm.read_memory(0x8000, 2) == b"\x34\x12"
    assert vcpu.get_regs().rax == 0xABCD_0000_1234
    assert vcpu.instructions == 7


def test_string_output_is_one_exit_for_each_piece(host: Host) -> None:
    vm = vm_with_memory(host)
    vcpu = vcpu_with_code(vm, "mov si, text\nmov cx, 3\nmov dx, 0xe9\nrep outsb\nhlt\ntext: db 'abc'")
    said = b""
    while (run := vcpu.run()).exit_reason is ExitReason.IO:
        assert run.io is not None
        said += bytes((run.io.data,))
    assert said == b"abc"
    assert run.exit_reason is ExitReason.HLT


def test_an_access_where_no_memory_is_is_mmio(host: Host) -> None:
    vm = vm_with_memory(host, size=MIB // 2)
    vcpu = vcpu_with_code(vm, "mov ax, 0x9000\nmov ds, ax\nadd word [0x10], 5\nmov eax, [0x20]\nhlt")
    run = vcpu.run()
    assert run.mmio is not None
    assert (run.mmio.phys_addr, run.mmio.len, run.mmio.is_write) == (0x90010, 2, False)
    assert vcpu.instructions == 2
    run.mmio.data = 7
    run = vcpu.run()
    assert run.mmio is not None
    assert (run.mmio.phys_addr, run.mmio.len, run.mmio.is_write, run.mmio.data) == (0x90010, 2, True, 12)
    run = vcpu.run()
    assert run.mmio is not None
    assert (run.mmio.phys_addr, run.mmio.len) == (0x90020, 4)
    run.mmio.data = 0x89ABCDEF
    assert vcpu.run().exit_reason is ExitReason.HLT
    assert vcpu.get_regs().rax == 0x89ABCDEF


def test_registers_are_what_was_set(host: Host) -> None:
    vcpu = vcpu_with_code(vm_with_memory(host), "hlt")
    regs = Regs(**{name: number for number, name in enumerate(Regs.__slots__, 3)})
    regs.rflags = 0x246
    vcpu.set_regs(regs)
    assert vcpu.get_regs() == regs
    sregs = vcpu.get_sregs()
    sregs.cr3 = 0x5000
    sregs.idt = sregs.idt._replace(base=0x6000)
    vcpu.set_sregs(sregs)
    assert vcpu.get_sregs() == sregs
    vcpu.set_msr(0x277, 0x0606060606060606)
    assert vcpu.get_msr(0x277) == 0x0606060606060606
    with pytest.raises(KvmError, match="no register"):
        vcpu.set_regs(eax=1)
    with pytest.raises(KvmError, match="no MSR"):
        vcpu.get_msr(0x12345)
    with pytest.raises(KvmError, match="does not take"):
        vcpu.set_msr(0x277, 9)


def test_an_interrupt_wakes_hlt_and_waits_for_if(host: Host) -> None:
    vm = vm_with_memory(host)
    source = "mov word [0x80], handler\nmov word [0x82], 0\nsti\nhlt\ninc bx\nhlt\nhandler: mov cx, 9\niret"
    vcpu = vcpu_with_code(vm, source)
    assert vcpu.run().exit_reason is ExitReason.HLT
    assert vcpu.get_regs().rcx == 0
    vcpu.interrupt(0x20)
    with pytest.raises(KvmError, match="waits already"):
        vcpu.interrupt(0x20)
    assert vcpu.run().exit_reason is ExitReason.HLT
    assert (vcpu.get_regs().rcx, vcpu.get_regs().rbx) == (9, 1)
    with pytest.raises(KvmError, match="no vector"):
        vcpu.interrupt(256)


def test_a_run_ends_after_so_many_instructions(host: Host) -> None:
    vcpu = vcpu_with_code(vm_with_memory(host), "again: inc bx\njmp again")
    for _ in range(3):
        assert vcpu.run(instructions=1000).exit_reason is ExitReason.INTR
    assert vcpu.instructions == 3000
    assert vcpu.get_regs().rbx == 1500


def test_a_triple_fault_is_shutdown(host: Host) -> None:
    vcpu = vcpu_with_code(vm_with_memory(host), "lidt [cs:nothing]\nint3\nnothing: dw 0, 0, 0")
    assert vcpu.run().exit_reason is ExitReason.SHUTDOWN


def test_faults_are_counted_by_kvms_names(host: Host) -> None:
    vcpu = vcpu_with_code(vm_with_memory(host), "mov [0x8000], ax\nhlt")
    vcpu.run()
    stat = vcpu.get_stats()
    assert stat["pf_taken"] >= stat["pf_fixed"] >= 2
    assert stat["halt_exits"] == 1


@pytest.mark.parametrize("mmu", ["shadow", "tdp"])
def test_set_sregs_enters_pae_paging_with_its_pointers(host: Host, mmu: str) -> None:
    vm = vm_with_memory(host, mmu=mmu)
    vcpu = vcpu_with_code(vm, "mov eax, [0x8000]\nhlt")
    vm.write_memory(0x20000, (0x21001).to_bytes(8, "little"))
    vm.write_memory(0x21000, (0xE3).to_bytes(8, "little"))
    vm.write_memory(0x8000, b"abcd")
    sregs = vcpu.get_sregs()
    sregs.cr0, sregs.cr3, sregs.cr4 = sregs.cr0 | 0x80000001, 0x20000, 1 << 5
    vcpu.set_sregs(sregs)
    assert vcpu.run().exit_reason is ExitReason.HLT
    assert vcpu.get_regs().rax == int.from_bytes(b"abcd", "little")
    vm.write_memory(0x20000, (0x21003).to_bytes(8, "little"))
    with pytest.raises(KvmError, match="PAE pointers"):
        vcpu.set_sregs(sregs)
