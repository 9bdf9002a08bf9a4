"""The chips of a PC, wired to each other: everything but CPUs, memory and the serial port.

    pc = Pc(PcConfig(cpus=2), PcHooks(reset=...), source)
    pc.register(port_bus, mmio_bus)
    pc.bios_defaults()                # for images that expect a BIOS to have run
    pc.lapics[i].on_event = ...       # each vCPU looks at its local APIC again

The machine calls pc.clock.run_due() when pc.clock.next_deadline() is reached. `pc.gsi(n)` is interrupt line n.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..addr import Gpa
from .a20 import PORT_92, RESET_CONTROL, A20Gate, Port92, ResetControl
from .acpi import acpi_files
from .acpi_pm import PM_BASE, PM_PORTS, AcpiPm
from .bus import MmioBus, PortBus, PortDevice
from .clock import VirtualClock
from .fw_cfg import E820_RAM, FW_CFG_PORT, FW_CFG_PORTS, FwCfg, e820_table
from .i8042 import I8042, I8042_COMMAND, I8042_DATA
from .ioapic import IOAPIC_BASE, IOAPIC_SIZE, Ioapic
from .irq import NR_GSIS, IrqLine, pc_irq_lines
from .lapic import Lapic
from .lapic_bus import LapicBus
from .pic import PIC_ELCR, PIC_MASTER, PIC_SLAVE, Pic
from .pit import PIT_BASE, PORT_B, Pit
from .rtc import RTC_INDEX, Rtc
from .testdev import (
    SHUTDOWN_PORT,
    TESTDEV_IORAM,
    TESTDEV_IORAM_SIZE,
    TESTDEV_IRQ,
    TESTDEV_SCRATCH,
    ShutdownPort,
    TestDevice,
)
from .vga import CRTC_INDEX, CRTC_PORTS, VGA_STATUS, Vga

_BIOS_PORTS = (
    *((0x20, 0x11), (0x21, 0x08), (0x21, 0x04), (0x21, 0x01), (0x21, 0xB8)),
    *((0xA0, 0x11), (0xA1, 0x70), (0xA1, 0x02), (0xA1, 0x01), (0xA1, 0x8E)),
    *((0x4D1, 0x0C), (0x43, 0x34), (0x40, 0x00), (0x40, 0x00), (0x92, 0x02)),
)
"""What SeaBIOS leaves behind: vectors 0x08 and 0x70, timer, keyboard, clock and disks open, 18.2 ticks a second."""
_BIOS_LAPIC = ((0xF0, 0x1FF), (0x350, 0x8700), (0x360, 0x8400))


def _nothing(*args: object) -> None:
    """A hook that nobody needs."""


@dataclass
class PcHooks:
    """What the chips ask of the machine; each is called in the middle of the guest's `out`."""

    reset: Callable[[], None] = _nothing
    power_off: Callable[[], None] = _nothing
    a20: Callable[[bool], None] = _nothing
    flush_page: Callable[[Gpa], None] = _nothing


@dataclass(frozen=True)
class PcConfig:
    """cpus: local APICs. below_4g, above_4g: bytes of memory. The rest: what CPUID says."""

    cpus: int = 1
    below_4g: int = 64 << 20
    above_4g: int = 0
    x2apic: bool = True
    tsc_deadline: bool = True
    maxphyaddr: int = 40


def _fw_cfg(config: PcConfig) -> FwCfg:
    """What firmware asks for before anything else: memory, CPUs, ACPI tables."""
    fw_cfg = FwCfg(config.below_4g + config.above_4g, config.cpus, config.cpus)
    memory = ((0, config.below_4g), (1 << 32, config.above_4g))
    fw_cfg.add_file("etc/e820", e820_table((base, size, E820_RAM) for base, size in memory if size))
    for name, data in acpi_files(config.cpus).items():
        fw_cfg.add_file(name, data)
    return fw_cfg


class Pc:
    """See the module. `source` counts the instructions retired."""

    def __init__(self, config: PcConfig, hooks: PcHooks, source: Callable[[], int]) -> None:
        self.clock = VirtualClock(source)
        self.lapic_bus = LapicBus()
        self.lapics = [
            Lapic(
                cpu,
                self.clock,
                self.lapic_bus,
                x2apic=config.x2apic,
                tsc_deadline=config.tsc_deadline,
                maxphyaddr=config.maxphyaddr,
            )
            for cpu in range(config.cpus)
        ]
        self.pic = Pic(lambda level: self.lapics[0].set_line(0, level))
        self.ioapic = Ioapic(self.lapic_bus, self.pic.acknowledge)
        self.lines = pc_irq_lines(self.pic.set_irq, self.ioapic.set_irq)
        self.pit = Pit(self.clock, self.lines[0])
        self.rtc = Rtc(self.clock, self.lines[8])
        self.rtc.set_machine(config.below_4g, config.above_4g, config.cpus)
        self.fw_cfg = _fw_cfg(config)
        self.a20 = A20Gate(hooks.a20)
        self.port_92 = Port92(self.a20, hooks.reset)
        self.reset_control = ResetControl(hooks.reset)
        self.i8042 = I8042(self.lines[1], self.a20, hooks.reset)
        self.acpi_pm = AcpiPm(self.clock, hooks.power_off)
        self.test_device = TestDevice(self.lines, hooks.flush_page)
        self.shutdown_port = ShutdownPort(hooks.power_off)
        self.vga = Vga()
        self._power_on = self.state()

    def gsi(self, number: int) -> IrqLine:
        """Interrupt line 0 to 23."""
        return self.lines[number]

    def register(self, ports: PortBus, mmio: MmioBus) -> None:
        """Put every chip on its bus. Ports 0xe8 to 0xeb, where QEMU's test device has a copy, stay free."""
        for base in (PIC_MASTER, PIC_SLAVE, PIC_ELCR):
            ports.register(self.pic, base, 2, byte_wide=True)
        ports.register(self.pit, PIT_BASE, 4, byte_wide=True)
        ports.register(self.pit, PORT_B, 1, byte_wide=True)
        ports.register(self.i8042, I8042_DATA, 1, byte_wide=True)
        ports.register(self.i8042, I8042_COMMAND, 1, byte_wide=True)
        ports.register(self.rtc, RTC_INDEX, 2, byte_wide=True)
        ports.register(self.port_92, PORT_92, 1, byte_wide=True)
        ports.register(self.reset_control, RESET_CONTROL, 1, byte_wide=True)
        ports.register(self.test_device, TESTDEV_SCRATCH, 8)
        ports.register(self.test_device, TESTDEV_IRQ, NR_GSIS)
        ports.register(self.shutdown_port, SHUTDOWN_PORT, 1, byte_wide=True)
        ports.register(self.acpi_pm, PM_BASE, PM_PORTS)
        ports.register(self.fw_cfg, FW_CFG_PORT, FW_CFG_PORTS)
        ports.register(self.vga, CRTC_INDEX, CRTC_PORTS, byte_wide=True)
        ports.register(self.vga, VGA_STATUS, 1, byte_wide=True)
        mmio.register(self.ioapic, IOAPIC_BASE, IOAPIC_SIZE)
        mmio.register(self.test_device, TESTDEV_IORAM, TESTDEV_IORAM_SIZE)

    def bios_defaults(self) -> None:
        """Program the chips as SeaBIOS does before it starts a kernel."""
        by_port: dict[int, PortDevice] = dict.fromkeys((PIC_MASTER, PIC_SLAVE, PIC_ELCR), self.pic)
        by_port |= {PIT_BASE: self.pit, PIT_BASE + 2: self.pit, PORT_92: self.port_92}
        for port, value in _BIOS_PORTS:
            by_port[port & ~1].port_write(port, 1, value)
        for offset, value in _BIOS_LAPIC:
            self.lapics[0].write(offset, value)
        self.i8042.system = True

    def reset(self) -> None:
        """The reset line: every chip as at power-up, but time goes on and the clock's chip keeps its battery."""
        for line in self.lines:
            line.level = 0
        for name, part in self._parts().items():
            if name not in ("clock", "rtc"):
                part.load(self._power_on[name])

    def _parts(self) -> dict[str, Any]:
        """Every chip by name, the clock first, as the others arm timers on it."""
        return {
            "clock": self.clock,
            "lapic_bus": self.lapic_bus,
            **{f"lapic{lapic.cpu}": lapic for lapic in self.lapics},
            "pic": self.pic,
            "ioapic": self.ioapic,
            "pit": self.pit,
            "rtc": self.rtc,
            "fw_cfg": self.fw_cfg,
            "a20": self.a20,
            "port_92": self.port_92,
            "reset_control": self.reset_control,
            "i8042": self.i8042,
            "acpi_pm": self.acpi_pm,
            "test_device": self.test_device,
            "shutdown_port": self.shutdown_port,
            "vga": self.vga,
        }

    def state(self) -> dict[str, Any]:
        """Plain data of every chip, and the levels of the lines."""
        parts = {name: part.state() for name, part in self._parts().items()}
        return {**parts, "lines": [line.level for line in self.lines]}

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of state(), for a machine of the same configuration."""
        for name, part in self._parts().items():
            part.load(saved[name])
        for line, level in zip(self.lines, saved["lines"], strict=True):
            line.level = level
