"""What a debugger writes is in the machine, and in the run that is repeated; what the CPU would refuse is refused."""

from __future__ import annotations

import pytest

from shadowvm.config import MIB
from shadowvm.debug.monitor import Monitor
from shadowvm.debug.target import Target
from shadowvm.debug.timeline import Timeline
from shadowvm.errors import ConfigError, ShadowvmError
from shadowvm.x86 import CR0_PE, CR0_PG, CR4_PGE, EFER_NX
from tests.debug.machines import target_of


@pytest.fixture
def monitor(timeline: Timeline) -> Monitor:
    timeline.repeat([])
    return Monitor(timeline)


def said(monitor: Monitor, *commands: str) -> str:
    return "\n".join(line for command in commands for line in monitor.execute(command))


def test_the_words_for_writes(monitor: Monitor) -> None:
    said(monitor, "until *main", "set $rax = 1 + 2", "set {int} $sp - 8 = 0x1122334455", "set var $eflags = 0x8d5")
    said(monitor, "set {unsigned char} $sp - 1 = -1", "set {short}$sp-3 = 0x10002", "set {long}$sp-16 = main")
    assert said(monitor, "p $rax", "p $rflags & $eflags") == "0x3\n0x8d7"
    assert said(monitor, "x /2xg $sp - 16").endswith(": 0x0000000000101b80 0xff00020022334455")
    said(monitor, "set $pc = $pc + 4")
    assert said(monitor, "p $rip - main") == "0x4"


def test_a_write_is_repeated_and_can_be_gone_back_behind(monitor: Monitor) -> None:
    said(monitor, "until 300000", "set $r15 = 0x77", "set {long} 0x2a0000 = 0x1234")
    here, state = monitor.timeline.position, said(monitor, "hash")
    assert said(monitor, "rsi 10", "x /1xg 0x2a0000").endswith(" 0x0000000000000000")
    assert said(monitor, "stepi 10", "hash").endswith(state)
    assert said(monitor, "restart", "replay_seek 300000", "p $r15").endswith("0x77")
    monitor.timeline.go_to(here)
    assert said(monitor, "hash") == state


def test_a_write_before_the_first_instruction_belongs_to_the_start(monitor: Monitor) -> None:
    said(monitor, "set $rax = 5", "set $rbx = 6")
    state, here = said(monitor, "hash"), monitor.timeline.position
    assert here.instructions == 0
    for back in ("rsi 3", "rc", "restart", "replay_seek 0"):
        said(monitor, "stepi 3")
        said(monitor, back)
        assert (said(monitor, "hash"), monitor.timeline.position) == (state, here), back
    assert said(monitor, "replay_seek event 1", "p $rax").endswith("0x0")


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("set", "the form is"),
        ("set $rax", "the form is"),
        ("set {float} 0 = 1", "the form is"),
        ("set $rax = ", "a number is missing"),
        ("set $nosuch = 1", "there is no register '$nosuch'"),
        ("set {int} 0xffff800000000000 = 1", "no memory is there that can be written"),
        ("set $cr0 = 0x80000000", "cr0 does not take 0x80000000"),
        ("set $efer = 1 << 63", "efer does not take"),
        ("set $cr8 = 16", "cr8 does not take"),
        ("set $ss = 0x1234", "ss is not written from outside in protected mode"),
    ],
)
def test_what_is_refused_changes_nothing(monitor: Monitor, command: str, complaint: str) -> None:
    state = said(monitor, "until *main", "hash")
    with pytest.raises(ShadowvmError) as refused:
        monitor.execute(command)
    assert complaint in str(refused.value)
    assert said(monitor, "hash") == state.splitlines()[-1]
    assert monitor.timeline.inputs == []


@pytest.mark.parametrize("mmu", ["shadow", "tdp"])
def test_another_cr3_is_another_address_space_at_once(mmu: str) -> None:
    """To a copy of the tables, in which the third 2 MiB are the second ones."""
    target = target_of(mmu=mmu)
    target.go(until=300_000)
    cr3 = target.view("registers")["cr3"]
    top = int.from_bytes(target.view("physical", cr3, 8), "little")
    middle = int.from_bytes(target.view("physical", top & ~0xFFF, 8), "little")
    lowest = target.view("physical", middle & ~0xFFF, 4096)
    tables = ((0x60000, 0x61003), (0x61000, 0x62003))
    for at, entry in tables:
        target.write("memory", None, at, entry.to_bytes(8, "little").hex())
    target.write("memory", None, 0x62000, (lowest[:16] + lowest[8:16] + lowest[24:]).hex())
    target.write("memory", None, 0x200000, b"\x11".hex() * 8)
    target.write("register", None, "cr3", 0x60000)
    target.write("register", None, "rax", 0x400000)
    target.write("memory", None, target.view("registers")["rip"], "488b00")  # mov rax, [rax]
    target.go(until=300_001)
    assert target.view("registers")["rax"] == 0x1111_1111_1111_1111
    target.close()


def test_system_registers_are_those_of_the_vcpu_that_stands_here() -> None:
    target = target_of("smp-shootdown", "pages=16 changes=4 turn=4", 4 * MIB, smp=2)
    target.go(until=20_000)
    here = target.stop.vcpu
    assert here is not None
    old = target.view("registers", here)
    for name, bit in (("cr4", CR4_PGE), ("efer", EFER_NX)):
        target.write("register", here, name, old[name] ^ bit)
        assert target.view("registers", here)[name] == old[name] ^ bit
        with pytest.raises(ConfigError, match="step it first"):
            target.write("register", 1 - here, name, target.view("registers", 1 - here)[name] ^ bit)
    with pytest.raises(ConfigError, match="#GP"):
        target.write("register", here, "cr0", CR0_PG)
    target.close()


def test_a_selector_is_its_base_in_real_mode() -> None:
    target: Target = target_of("real16", "", 4 * MIB)
    while target.view("registers")["cr0"] & CR0_PE:
        assert target.go(until=target.position.instructions + 10).kind == "instructions"
    target.write("register", 0, "ds", 0x1234)
    assert target.view("registers")["ds"] == 0x1234
    assert target.machine.vcpu.engine.segment(3).base == 0x12340
    with pytest.raises(ConfigError, match="16 bits"):
        target.write("register", 0, "ds", 0x12345)
    target.close()
