"""QEMU's fw_cfg: what firmware and tests ask the VMM (docs/specs/fw_cfg.rst of QEMU).

A 16-bit `out` to 0x510 selects an item, each byte read from 0x511 is the next of it; behind its end come zeros.
Numbers are little-endian, the file directory is big-endian. There is no DMA interface, as item 1 says.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

from ..errors import ModelBug
from .state import load_fields, save_fields

FW_CFG_PORT, FW_CFG_PORTS = 0x510, 2

FW_CFG_SIGNATURE, FW_CFG_ID, FW_CFG_UUID, FW_CFG_RAM_SIZE, FW_CFG_NB_CPUS = 0x00, 0x01, 0x02, 0x03, 0x05
FW_CFG_KERNEL_ADDR, FW_CFG_KERNEL_SIZE, FW_CFG_INITRD_ADDR, FW_CFG_INITRD_SIZE = 0x07, 0x08, 0x0A, 0x0B
FW_CFG_MAX_CPUS, FW_CFG_KERNEL_ENTRY, FW_CFG_KERNEL_DATA, FW_CFG_INITRD_DATA = 0x0F, 0x10, 0x11, 0x12
FW_CFG_CMDLINE_SIZE, FW_CFG_CMDLINE_DATA, FW_CFG_FILE_DIR, FW_CFG_FILE_FIRST = 0x14, 0x15, 0x19, 0x20
FW_CFG_IRQ0_OVERRIDE = 0x8002

E820_RAM, E820_RESERVED, E820_ACPI = 1, 2, 3
_SELECTOR_MASK = 0xBFFF
"""All but bit 14, which once selected an item for writing."""
_FILE_NAME_MAX = 56


class FwCfg:
    """items: bytes by key. key, offset: what is selected and how much of it was read."""

    _STATE = ("key", "offset")
    __slots__ = ("_files", "items", *_STATE)

    def __init__(self, ram_size: int, cpus: int, max_cpus: int) -> None:
        self.key = self.offset = 0
        self._files: list[tuple[str, int, int]] = []
        self.items: dict[int, bytes] = {
            FW_CFG_SIGNATURE: b"QEMU",
            FW_CFG_ID: struct.pack("<I", 1),
            FW_CFG_UUID: bytes(16),
            FW_CFG_RAM_SIZE: struct.pack("<Q", ram_size),
            FW_CFG_NB_CPUS: struct.pack("<H", cpus),
            FW_CFG_MAX_CPUS: struct.pack("<H", max_cpus),
            FW_CFG_IRQ0_OVERRIDE: struct.pack("<I", 1),
        }
        self._list_files()

    def add(self, key: int, data: bytes) -> None:
        """Offer an item; ModelBug if the key is taken."""
        if key in self.items:
            raise ModelBug(f"fw_cfg item {key:#x} added twice")
        self.items[key] = bytes(data)

    def add_file(self, name: str, data: bytes) -> None:
        """Offer an item by name in the file directory."""
        if len(name) >= _FILE_NAME_MAX:
            raise ModelBug(f"fw_cfg file name too long: {name}")
        key = FW_CFG_FILE_FIRST + len(self._files)
        self.add(key, data)
        self._files.append((name, key, len(data)))
        self._list_files()

    def add_kernel(self, data: bytes, load: int, entry: int, cmdline: bytes = b"") -> None:
        """The items from which firmware loads a kernel: `data` belongs at gpa `load` and starts at `entry`."""
        self.add(FW_CFG_KERNEL_ADDR, struct.pack("<I", load))
        self.add(FW_CFG_KERNEL_SIZE, struct.pack("<I", len(data)))
        self.add(FW_CFG_KERNEL_ENTRY, struct.pack("<I", entry))
        self.add(FW_CFG_KERNEL_DATA, data)
        self.add(FW_CFG_CMDLINE_SIZE, struct.pack("<I", len(cmdline) + 1))
        self.add(FW_CFG_CMDLINE_DATA, cmdline + b"\0")

    def add_initrd(self, data: bytes, load: int) -> None:
        """The items of an initial RAM disk that belongs at gpa `load`."""
        self.add(FW_CFG_INITRD_ADDR, struct.pack("<I", load))
        self.add(FW_CFG_INITRD_SIZE, struct.pack("<I", len(data)))
        self.add(FW_CFG_INITRD_DATA, data)

    def _list_files(self) -> None:
        entries = [struct.pack(">IHH56s", size, key, 0, name.encode()) for name, key, size in sorted(self._files)]
        self.items[FW_CFG_FILE_DIR] = struct.pack(">I", len(entries)) + b"".join(entries)

    def port_read(self, port: int, size: int) -> int:
        """A byte of the item, at either port as on QEMU; wider reads give 0 and take nothing."""
        if size != 1:
            return 0
        data = self.items.get(self.key, b"")
        value = data[self.offset] if self.offset < len(data) else 0
        self.offset += 1
        return value

    def port_write(self, port: int, size: int, value: int) -> None:
        """Select an item. Data cannot be written."""
        if port == FW_CFG_PORT and size == 2:
            self.key, self.offset = value & _SELECTOR_MASK, 0

    def state(self) -> dict[str, Any]:
        """Plain data; the items are configuration."""
        return save_fields(self, self._STATE)

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of state()."""
        load_fields(self, self._STATE, saved)


def e820_table(entries: Iterable[tuple[int, int, int]]) -> bytes:
    """The file etc/e820: (base, length, E820_*) of each range."""
    return b"".join(struct.pack("<QQI", base, length, kind) for base, length, kind in entries)
