from __future__ import annotations

import json
import struct

import pytest

from shadowvm.devices.fw_cfg import E820_RAM, E820_RESERVED, FwCfg, e820_table
from shadowvm.errors import ModelBug


@pytest.fixture
def fw_cfg():
    return FwCfg(64 << 20, 4, 8)


def read(fw_cfg, key, size):
    fw_cfg.port_write(0x510, 2, key)
    return bytes(fw_cfg.port_read(0x511, 1) for _ in range(size))


def directory(fw_cfg):
    count = struct.unpack(">I", read(fw_cfg, 0x19, 4))[0]
    entries = (bytes(fw_cfg.port_read(0x511, 1) for _ in range(64)) for _ in range(count))
    files = {}
    for size, key, _, name in (struct.unpack(">IHH56s", entry) for entry in entries):
        files[name.rstrip(b"\0").decode()] = (key, size)
    return files


def test_signature_and_an_id_without_dma(fw_cfg):
    assert read(fw_cfg, 0, 6) == b"QEMU\0\0"
    assert read(fw_cfg, 1, 4) == b"\1\0\0\0"


def test_memory_and_cpus(fw_cfg):
    assert read(fw_cfg, 3, 8) == (64 << 20).to_bytes(8, "little")
    assert read(fw_cfg, 5, 2) == b"\4\0"
    assert read(fw_cfg, 0xF, 2) == b"\x08\0"


def test_selecting_again_starts_over_and_bit_14_is_ignored(fw_cfg):
    assert read(fw_cfg, 0, 2) == read(fw_cfg, 0, 2) == read(fw_cfg, 1 << 14, 2) == b"QE"


def test_unknown_items_read_as_zeros(fw_cfg):
    assert read(fw_cfg, 0x7777, 3) == bytes(3)


def test_only_a_word_selects_and_only_bytes_are_read(fw_cfg):
    fw_cfg.port_write(0x510, 1, 3)
    fw_cfg.port_write(0x511, 1, 3)
    assert fw_cfg.port_read(0x510, 2) == fw_cfg.port_read(0x511, 4) == 0
    assert fw_cfg.port_read(0x510, 1) == ord("Q")


def test_files_are_listed_by_name(fw_cfg):
    assert directory(fw_cfg) == {}
    table = e820_table([(0, 640 << 10, E820_RAM), (0xFFFC0000, 0x40000, E820_RESERVED)])
    fw_cfg.add_file("opt/answer", b"42")
    fw_cfg.add_file("etc/e820", table)
    assert list(directory(fw_cfg)) == ["etc/e820", "opt/answer"]
    key, size = directory(fw_cfg)["etc/e820"]
    assert size == 40
    assert read(fw_cfg, key, size) == table
    assert struct.unpack_from("<QQI", table, 20) == (0xFFFC0000, 0x40000, 2)


def test_a_kernel_and_its_initrd(fw_cfg):
    fw_cfg.add_kernel(b"\x7fELF", 0x100000, 0x100010, b"console=ttyS0")
    fw_cfg.add_initrd(b"abc", 0x2000000)
    numbers = [int.from_bytes(read(fw_cfg, key, 4), "little") for key in (7, 8, 0x10, 0x14, 0xA, 0xB)]
    assert numbers == [0x100000, 4, 0x100010, 14, 0x2000000, 3]
    assert (read(fw_cfg, 0x11, 4), read(fw_cfg, 0x15, 14)) == (b"\x7fELF", b"console=ttyS0\0")
    assert read(fw_cfg, 0x12, 3) == b"abc"


def test_no_item_twice(fw_cfg):
    with pytest.raises(ModelBug):
        fw_cfg.add(3, b"")
    with pytest.raises(ModelBug):
        fw_cfg.add_file("x" * 56, b"")


def test_state_round_trip(fw_cfg):
    read(fw_cfg, 0, 2)
    other = FwCfg(64 << 20, 4, 8)
    other.load(json.loads(json.dumps(fw_cfg.state())))
    assert bytes(other.port_read(0x511, 1) for _ in range(2)) == b"MU"
