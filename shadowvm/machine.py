"""One machine: a simulated host, a VM on it, its devices and tasks, wired from a config.

The only place that knows every part. `Machine(config, output)` builds it up to the first guest instruction,
`run()` runs the guest to its end, `close()` takes everything down as the kernel would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from enum import Enum
from functools import partial
from typing import NamedTuple

from .addr import HUGE_PAGE_SIZE, PAGE_SHIFT, PAGE_SIZE, Gfn, Gpa, Gva, Hva
from .api import Host, Kvm
from .boot import pvh
from .boot.bios import bios_data, bios_handlers
from .boot.image import BootOptions, ProtectedModeStart, ResetStart, Segment, Start, read_file
from .boot.load import load_image
from .boot.memmap import acpi_base, memory_layout
from .config import MachineConfig
from .cpu.layout import RBX, RDI, RSP
from .cpu.unicorn_engine import UnicornEngine
from .devices.acpi import RSDP_GPA, acpi_tables
from .devices.bus import MmioBus, PortBus
from .devices.debug_exit import DEBUG_EXIT_PORT, DebugExit
from .devices.debugcon import DEBUGCON_PORT, DebugConsole
from .devices.irqchip import Irqchip
from .devices.lapic import Lapic
from .devices.mptable import mp_tables
from .devices.pc import Pc, PcConfig, PcHooks
from .devices.uart import COM1, COM1_IRQ, Uart
from .errors import ConfigError, KvmError, SwapIOError
from .kvm.cpuid import cpuid, parse_cpu_model
from .kvm.exit import ExitReason, KvmRun
from .kvm.irq import IrqState
from .kvm.memslot import KVM_MEM_READONLY
from .kvm.mmu.nx_huge_page import kvm_recover_nx_huge_pages, nx_huge_page_recovery_period_ms
from .kvm.mp_state import MpState
from .kvm.turns import Turns
from .kvm.vcpu import Vcpu
from .mm.memory_failure import madvise_hwpoison
from .mm.mm_struct import mprotect
from .mm.page_io import SwapReads
from .x86 import EFER_NX

ENOMEM = -12
NS_PER_MS = 1_000_000
MAX_SERIAL_INPUT = 64 << 20
MAX_IDLE_DEADLINES = 100_000
"""A timer that has fired so often without waking a CPU is masked for good."""


class Reason(Enum):
    """How a run ended."""

    DEBUG_EXIT = "debug-exit"
    POWER_OFF = "power-off"
    RESET = "reset"
    HALTED = "halted"
    TIMEOUT = "timeout"
    TRIPLE_FAULT = "triple-fault"
    OUT_OF_MEMORY = "out-of-memory"
    SWAP_ERROR = "swap-error"
    UNBACKED_MEMORY = "unbacked-memory"
    MEMORY_FAILURE = "memory-failure"
    INTERNAL_ERROR = "internal-error"


class Outcome(NamedTuple):
    """`status` is the exit status of `shadowvm run`; `text` says more where there is more to say."""

    reason: Reason
    status: int
    text: str = ""


class Machine:
    """See the module. `output` is called with every byte that the guest sends to COM1 or the debug console."""

    def __init__(self, config: MachineConfig, output: Callable[[int], None]) -> None:
        config.validate()
        self.config = config
        self._output = output
        self._digest = hashlib.sha256()
        layout = memory_layout(config.memory)
        image = load_image(config.image, _boot_options(config), config.bios)
        cpu_model = parse_cpu_model(config.cpu, config.smp)
        if not config.kvm_params.async_pf:
            cpu_model.drop("kvm-asyncpf", "kvm-asyncpf-int")
        self.system = Host(config.host_memory, config.swap_size, config.swap_file, config.seed, config.thp)
        self.ram, self.sched, self.host = self.system.ram, self.system.sched, self.system.node
        self._ended_by: Reason | None = None
        self.on_dirty_ring_full: Callable[[Vcpu], None] | None = None
        self._nx_recovery_armed = False
        with ExitStack() as undo:
            undo.callback(self.host.close)
            turns = Turns(*config.quantum, seed=config.seed) if config.smp > 1 else None
            self.vm = Kvm(self.system).create_vm(config.mmu, params=config.kvm_params, cpu=cpu_model, turns=turns)
            self.mm, self.kvm = self.vm.mm, self.vm.kvm
            for slot_id, memory in enumerate(layout):
                base, size = memory.base << PAGE_SHIFT, memory.npages << PAGE_SHIFT
                hva = self.vm.mmap(size)
                self.vm.madvise_hugepage(hva, size)
                self.vm.set_user_memory_region(slot_id, base, size, hva)
            self._add_pc(not isinstance(image.start, ResetStart))
            for number in range(config.smp):
                self._add_vcpu(number)
            start_cpu(self.vcpus[0].engine, image.start)
            if not cpu_model.has("nx"):
                self.vcpus[0].engine.efer &= ~EFER_NX
            for rom in image.roms:
                self._add_rom(rom)
            for key, value in image.fw_cfg.items():
                self.pc.fw_cfg.add(key, value)
            for segment in image.segments:
                self.write_guest(segment.gpa, segment.data)
            self.sched.idle = self._idle
            if config.swap_latency:
                self.host.swap_reads = SwapReads(self.host, self._after_swap_latency)
            if nx_huge_page_recovery_period_ms(self.kvm):
                self.kvm.on_nx_huge_page = self._arm_nx_recovery
            for gpa, when in config.poison:
                self.pc.clock.at(when, partial(self._poison, Gpa(gpa)))
            undo.pop_all()

    def _arm_nx_recovery(self) -> None:
        """kvm-nx-lpage-recovery, a pass every period, as long as it has something to do."""
        if not self._nx_recovery_armed:
            self._nx_recovery_armed = True
            period = nx_huge_page_recovery_period_ms(self.kvm) * NS_PER_MS
            self.pc.clock.at(self.pc.clock.now() + period, self._start_nx_recovery)

    def _start_nx_recovery(self) -> None:
        self._nx_recovery_armed = False
        self.sched.spawn("kvm-nx-lpage-re", self._recover_nx)

    def _recover_nx(self) -> None:
        kvm_recover_nx_huge_pages(self.kvm)
        if self.kvm.possible_nx_huge_pages:
            self._arm_nx_recovery()

    def _add_rom(self, rom: Segment) -> None:
        """A slot of its own for firmware outside of memory; read-only, as QEMU's pc.bios is."""
        offset = rom.gpa % HUGE_PAGE_SIZE
        slot_id = len(self.kvm.memslots.slots)
        hva = self.vm.mmap(offset + rom.memsz) + offset
        self.vm.set_user_memory_region(slot_id, rom.gpa, rom.memsz, hva, KVM_MEM_READONLY)
        self.write_guest(rom.gpa, rom.data)

    def _add_pc(self, bios_ran: bool) -> None:
        """The devices. A kernel finds the chips as a BIOS leaves them."""
        below_4g, *above = (each.npages << PAGE_SHIFT for each in memory_layout(self.config.memory))
        hooks = PcHooks(
            reset=lambda: self._end(Reason.RESET),
            power_off=lambda: self._end(Reason.POWER_OFF),
            a20=self._set_a20,
            flush_page=lambda gpa: self._running.do_outside(lambda: self._flush_page(gpa)),
        )
        model = self.kvm.cpu_model
        config = PcConfig(
            cpus=self.config.smp,
            below_4g=below_4g,
            above_4g=sum(above),
            x2apic=model.has("x2apic"),
            tsc_deadline=model.has("tsc-deadline"),
        )
        self.pc = Pc(config, hooks, lambda: self.kvm.instructions)
        self.debug_exit = DebugExit(self._stop)
        self.bus = PortBus()
        self.uart = Uart(self._emit, self.pc.clock, self.pc.gsi(COM1_IRQ), _serial_line(self.config))
        self.bus.register(self.uart, COM1, 8)
        self.bus.register(DebugConsole(self._emit), DEBUGCON_PORT, 1)
        self.bus.register(self.debug_exit, DEBUG_EXIT_PORT, 4)
        self.mmio = MmioBus()
        self.pc.register(self.bus, self.mmio)
        if bios_ran:
            self.pc.bios_defaults()
        self.pc.clock.on_earlier = self._deadline_moved

    def _add_vcpu(self, number: int) -> None:
        """A CPU in the state of reset, with its local APIC; all but the first wait to be started."""
        limit = self.config.timeout_instructions
        vcpu = self.vm.create_vcpu(counting=self.config.icount, limit=limit, userspace_io=False).vcpu
        engine = vcpu.engine
        lapic = self.pc.lapics[number]
        vcpu.irq = IrqState(Irqchip(lapic, self.pc.pic), self.pc.clock)
        lapic.on_event = vcpu.look_again
        engine.on_in(partial(self._port_read, vcpu))
        engine.on_out(partial(self._port_write, vcpu))
        engine.on_mmio(partial(self._mmio_read, lapic), partial(self._mmio_write, lapic))
        if number:
            vcpu.mp_state = MpState.UNINITIALIZED

    @property
    def vcpus(self) -> list[Vcpu]:
        """All CPUs; the first is the boot CPU."""
        return self.kvm.vcpus

    @property
    def vcpu(self) -> Vcpu:
        """The boot CPU."""
        return self.kvm.vcpus[0]

    def _port_read(self, vcpu: Vcpu, port: int, size: int) -> int:
        vcpu.settle_irq()
        return self.bus.read(port, size)

    def _port_write(self, vcpu: Vcpu, port: int, size: int, value: int) -> None:
        vcpu.settle_irq()
        self.bus.write(port, size, value)

    def _mmio_read(self, lapic: Lapic, gpa: Gpa, size: int) -> int:
        return lapic.mmio_read(gpa & 0xFFF, size) if lapic.claims(gpa) else self.mmio.read(gpa, size)

    def _mmio_write(self, lapic: Lapic, gpa: Gpa, size: int, value: int) -> None:
        if lapic.claims(gpa):
            lapic.mmio_write(gpa & 0xFFF, size, value)
        else:
            self.mmio.write(gpa, size, value)

    @property
    def _running(self) -> Vcpu:
        """The CPU whose instruction a device answers."""
        return self.kvm.loaded or self.vcpu

    def _deadline_moved(self) -> None:
        """The next timer is due earlier than the running CPU's budget knows."""
        if self.kvm.loaded is not None:
            self.kvm.loaded.look_again()

    def _stop(self) -> None:
        """A device ends the run."""
        self._running.stop()

    def _set_a20(self, enabled: bool) -> None:
        self.kvm.set_a20(enabled)
        self._running.engine.request_stop()

    def _flush_page(self, gpa: Gpa) -> None:
        """The VMM takes the page from itself and gives it back, as QEMU's pc-testdev does: it stays what it is."""
        slot = self.kvm.memslots.find(Gfn(gpa >> PAGE_SHIFT))
        if slot is not None:
            hva = Hva(slot.vpn(Gfn(gpa >> PAGE_SHIFT)) << PAGE_SHIFT)
            mprotect(self.mm, hva, PAGE_SIZE, False)
            mprotect(self.mm, hva, PAGE_SIZE, True)

    def _end(self, reason: Reason) -> None:
        """A device resets the machine or turns it off."""
        if self._ended_by is None:
            self._ended_by = reason
        self._stop()

    def _emit(self, byte: int) -> None:
        if self.debug_exit.status is None:
            self._digest.update(bytes((byte,)))
            self._output(byte)

    def write_guest(self, gpa: Gpa, data: bytes) -> None:
        """Store into guest memory as the VMM would, through its own mapping. ConfigError: no host memory left."""
        try:
            self.vm.write_memory(gpa, data)
        except KvmError as error:
            raise ConfigError(f"the image does not fit: {error}") from None

    def read_guest(self, gpa: Gpa, size: int) -> bytes:
        """What is in guest memory, through the VMM's own mapping. KvmError: no memory is there, or left."""
        return self.vm.read_memory(gpa, size)

    @property
    def instructions(self) -> int:
        """Guest instructions that all CPUs have retired so far; 0 when they are not counted."""
        return self.kvm.instructions if self.config.icount else 0

    @property
    def output_sha256(self) -> str:
        """Digest of the guest's output so far."""
        return self._digest.hexdigest()

    def run(self) -> Outcome:
        """Run the guest until it ends. Swap errors and exhausted memory are outcomes."""
        results: list[KvmRun] = []
        self.kvm.resume()
        for vcpu in self.vcpus:
            self.sched.spawn(f"CPU {vcpu.id}/KVM", partial(self._vcpu_thread, vcpu, results), vcpu=vcpu.id)
        try:
            self.system.run()
        except SwapIOError as error:
            return Outcome(Reason.SWAP_ERROR, 126, str(error))
        if self.host.swap_reads is not None:
            self.host.swap_reads.finish()
        return self._outcome(results[0])

    def _vcpu_thread(self, vcpu: Vcpu, results: list[KvmRun]) -> None:
        """The first CPU that has something to say ends the run for all. A full dirty ring is for who harvests it."""
        run = vcpu.run()
        while run.exit_reason is ExitReason.DIRTY_RING_FULL and self.on_dirty_ring_full is not None:
            self.on_dirty_ring_full(vcpu)
            run = vcpu.run()
        results.append(run)
        self.kvm.pause()

    def _idle(self) -> bool:
        """Every CPU sleeps: virtual time passes until a timer wakes one. If none ever will, all return from run()."""
        for _ in range(MAX_IDLE_DEADLINES):
            if not self.pc.clock.skip_to_next():
                break
            if self.kvm.loaded is not None:
                # Its budget and its time-stamp counter know nothing of the time that passed.
                self.kvm.loaded.look_again()
            self.pc.clock.run_due()
            if self.sched.runnable:
                return True
        self.kvm.all_asleep = True
        for vcpu in self.vcpus:
            vcpu.wake_up()
        return bool(self.sched.runnable)

    def _after_swap_latency(self, done: Callable[[], None]) -> None:
        self.pc.clock.at(self.pc.clock.now() + self.config.swap_latency, done)

    def _poison(self, gpa: Gpa) -> None:
        """The frame behind a page of the guest fails. Without memory there, nothing does."""
        slot = self.kvm.memslots.find(Gfn(gpa >> PAGE_SHIFT))
        if slot is None:
            return
        hva = Hva(slot.vpn(Gfn(gpa >> PAGE_SHIFT)) << PAGE_SHIFT)

        def fail() -> None:
            madvise_hwpoison(self.mm, hva)

        self.sched.spawn("memory_failure", fail)
        self.sched.need_resched = True

    def _outcome(self, run: KvmRun) -> Outcome:
        if run.errno == ENOMEM:
            return Outcome(Reason.OUT_OF_MEMORY, 126, "host out of memory and swap")
        if run.exit_reason == ExitReason.SYSTEM_EVENT and self.debug_exit.status is not None:
            return Outcome(Reason.DEBUG_EXIT, min(self.debug_exit.status, 255))
        if self._ended_by is not None:
            return Outcome(self._ended_by, 0 if self._ended_by is Reason.POWER_OFF else 127)
        reason = {
            ExitReason.INTR: Reason.TIMEOUT,
            ExitReason.HLT: Reason.HALTED,
            ExitReason.SHUTDOWN: Reason.TRIPLE_FAULT,
            ExitReason.MMIO: Reason.UNBACKED_MEMORY,
            ExitReason.MEMORY_FAULT: Reason.MEMORY_FAILURE,
        }.get(run.exit_reason, Reason.INTERNAL_ERROR)
        return Outcome(reason, 124 if reason is Reason.TIMEOUT else 127, run.text)

    def close(self) -> None:
        """Destroy the VM and then its process, as tasks of the host do, and give the real resources back.

        After a run that an exception cut short the host's state means nothing: then only the latter.
        """
        self.host.swap_reads = None
        self.system.close()


def _boot_options(config: MachineConfig) -> BootOptions:
    """What the loaders place, among it the tables that a BIOS leaves."""
    signature, _, _, features = cpuid(parse_cpu_model(config.cpu, config.smp), 0, 0, True, 1, 0)
    tables = acpi_tables(config.smp, acpi_base(config.memory)) + mp_tables(config.smp, signature, features)
    return BootOptions(
        config.memory,
        config.append.encode("utf-8", "surrogateescape"),
        config.initrd,
        extra=(*bios_handlers(), *bios_data(), *tables),
        rsdp=RSDP_GPA,
        load_address=config.load_address,
    )


def start_cpu(engine: UnicornEngine, start: Start) -> None:
    """Put the CPU into the state in which the boot loader enters the image."""
    engine.init_reset()
    if isinstance(start, ResetStart):
        return
    if isinstance(start, ProtectedModeStart):
        engine.init_protected_mode(start.entry, start.eax, start.ebx, start.gdt_base, start.gdt_limit)
        engine.set_reg(RSP, start.esp)
        return
    engine.init_long_mode(
        entry=Gva(start.entry),
        cr3=pvh.BOOT_PML4,
        gdt_base=Gva(pvh.BOOT_GDT),
        gdt_limit=8 * len(pvh.GDT_ENTRIES) - 1,
        rsp=Gva(pvh.BOOT_STACK),
        cr0=pvh.BOOT_CR0,
        cr4=pvh.BOOT_CR4,
        efer=pvh.BOOT_EFER,
    )
    for register in (RBX, RDI):
        engine.set_reg(register, start.start_info)


def _serial_line(config: MachineConfig) -> bytes:
    """What COM1 receives."""
    path = config.serial_input
    return b"" if path is None else read_file(path, MAX_SERIAL_INPUT, "--serial-input")
