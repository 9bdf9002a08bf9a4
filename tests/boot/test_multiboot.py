"""Multiboot 1: headers found and refused, and the memory that a guest finds, compared with QEMU's."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from shadowvm.addr import Gpa
from shadowvm.boot.image import BootImage, BootOptions, ProtectedModeStart
from shadowvm.boot.memmap import MemoryMapEntry, memory_map
from shadowvm.boot.multiboot import BOOT_MAGIC, find_header, load_multiboot
from shadowvm.errors import ConfigError

from .images import LEAVE, MIB, Load, elf32, elf64, multiboot_elf, multiboot_header, qemu, send

BASE = 4 * MIB
ADDRESS_FIELDS = 1 << 16
INFO_FIELDS = ("flags", "lower", "upper", "device", "cmdline", "mods_count", "mods_addr")


def load(data: bytes, memory: int = 64 * MIB, path: str = "x", **options: object) -> BootImage:
    header = find_header(data)
    assert header is not None
    return load_multiboot(path, data, header, BootOptions(memory, **options))  # type: ignore[arg-type]


def memory_of(image: BootImage, size: int = 8 * MIB) -> bytes:
    memory = bytearray(size)
    for gpa, data, memsz in image.segments:
        assert memory[gpa : gpa + memsz] == bytes(memsz), "nothing is loaded twice"
        memory[gpa : gpa + len(data)] = data
    return bytes(memory)


def info_of(image: BootImage, memory: bytes) -> dict[str, int]:
    assert isinstance(image.start, ProtectedModeStart)
    words = struct.unpack_from("<22I", memory, image.start.ebx)
    names = dict(zip(INFO_FIELDS, words, strict=False))
    return names | {"mmap_length": words[11], "mmap_addr": words[12], "loader": words[16]}


def text_at(memory: bytes, address: int) -> bytes:
    return memory[address : memory.index(b"\0", address)]


@pytest.mark.parametrize("offset", [0, 4, 8192 - 12])
def test_header_is_found_on_a_word_boundary_of_the_first_8_kib(offset: int) -> None:
    header = find_header(bytes(offset) + multiboot_header() + b"x" * 100)
    assert header is not None
    assert (header.offset, header.flags, header.addresses) == (offset, 0, None)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02\xb0\xad\x1b",
        bytes(2) + multiboot_header(),
        bytes(8192 - 8) + multiboot_header(),
        bytes(8192) + multiboot_header(),
        multiboot_header(checksum=1),
    ],
)
def test_what_is_no_header_is_passed_over(data: bytes) -> None:
    assert find_header(data) is None
    assert find_header(data[:64].ljust(64) + multiboot_header(3)) == (64, 3, None)


def test_entry_is_in_protected_mode_with_magic_and_info() -> None:
    image = load(multiboot_elf(b"\xf4", bss=0x1000))
    start = image.start
    assert isinstance(start, ProtectedModeStart)
    assert (start.entry, start.eax) == (BASE + 12, BOOT_MAGIC)
    memory = memory_of(image)
    assert start.gdt_limit == 39
    assert struct.unpack_from("<3Q", memory, start.gdt_base) == (0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF)
    assert info_of(image, memory)["flags"] == 0b10_0100_1111


def test_map_and_sizes_describe_the_memory() -> None:
    image = load(multiboot_elf(), memory=5 << 30)
    memory = memory_of(image)
    info = info_of(image, memory)
    assert (info["lower"], info["upper"]) == (639, (3 << 20) - 1024 - 128)
    entries = [struct.unpack_from("<IQQI", memory, info["mmap_addr"] + at) for at in range(0, info["mmap_length"], 24)]
    assert entries == [(20, *entry) for entry in memory_map(5 << 30)]


def test_a_map_of_the_platform_takes_the_place_of_the_plain_one() -> None:
    given = (MemoryMapEntry(Gpa(0), 0x9FC00, 1), MemoryMapEntry(Gpa(MIB), 6 * MIB, 1))
    image = load(multiboot_elf(), map=given)
    info = info_of(image, memory_of(image))
    assert (info["lower"], info["upper"], info["mmap_length"]) == (639, 6 << 10, 48)
    with pytest.raises(ConfigError, match="the memory map has 54 entries"):
        load(multiboot_elf(), map=given * 27)


def test_modules_lie_on_pages_behind_their_list_and_the_strings(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "t,wo"
    one.write_bytes(b"1" * 4097)
    two.write_bytes(b"")
    image = load(multiboot_elf(bss=0x1000), append=b"a  b", initrd=f"{one} x y, {tmp_path}/t,,wo,{one}")
    memory = memory_of(image)
    info = info_of(image, memory)
    assert text_at(memory, info["cmdline"]) == b"x a  b"
    assert text_at(memory, info["loader"]) == b"shadowvm"
    entries = [struct.unpack_from("<4I", memory, info["mods_addr"] + 16 * n) for n in range(info["mods_count"])]
    contents = [memory[start:end] for start, end, _, _ in entries]
    assert contents == [b"1" * 4097, b"", b"1" * 4097]
    assert [text_at(memory, each[2]).decode() for each in entries] == [f"{one} x y", str(two), str(one)]
    assert all(start % 4096 == 0 for start, *_ in entries)


def test_modules_that_do_not_fit_or_do_not_exist_are_refused(tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(2 * MIB))
    image = multiboot_elf()
    load(image, memory=7 * MIB, initrd=str(big))
    with pytest.raises(ConfigError, match=r"^-initrd: .*big: larger than the 913408 bytes that fit$"):
        load(image, memory=7 * MIB, initrd=f"{big},{big}")
    with pytest.raises(ConfigError, match=r"^-initrd: no/such: No such file"):
        load(image, initrd="no/such")
    with pytest.raises(ConfigError, match=r"^-initrd: a module without a name$"):
        load(image, initrd=f"{big},")
    with pytest.raises(ConfigError, match="no room behind the kernel"):
        load(multiboot_elf(base=MIB), memory=MIB + 4096)


def test_address_fields_place_a_flat_image() -> None:
    pad, base = b"junk", 2 * MIB
    flat = pad + multiboot_header(ADDRESS_FIELDS, [base, base, base + 40, base + 100, base + 33]) + b"c" * 20
    image = load(flat)
    assert image.segments[0] == (base, flat[4:44], 100)
    assert image.start.entry == base + 33  # type: ignore[union-attr]
    whole = load(pad + multiboot_header(ADDRESS_FIELDS, [base + 4, base, 0, 0, base + 36]) + b"c" * 20)
    assert whole.segments[0].gpa == base
    assert whole.segments[0].memsz == 4 + 32 + 20


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([BASE + 5, BASE, 0, 0, BASE], "loaded from before its file"),
        ([BASE - 4, BASE, 0, 0, BASE], "loaded from before its file"),
        ([BASE, BASE, BASE + 53, 0, BASE], "truncated: its Multiboot header asks for bytes 0x0-0x35"),
        ([BASE, BASE, BASE - 1, 0, BASE], "says that nothing is loaded"),
        ([BASE, BASE, BASE + 52, BASE + 51, BASE], "lets .bss end at 0x400033"),
        ([BASE, BASE, 0, 0, BASE + 52], "entry 0x400034 is outside of the image"),
        ([0xC0000000, 0xC0000000, 0, 0, 0xC0000000], "outside of guest memory"),
        ([BASE, BASE, 0, 0xFFFFFFFF, BASE], "outside of guest memory"),
        ([0x9FF0, 0x9FF0, 0, 0, 0x9FF0], "overlaps the boot information at 0x9000-0xa000"),
        ([], "truncated Multiboot header"),
    ],
)
def test_address_fields_that_cannot_be_are_refused(fields: list[int], message: str) -> None:
    flat = multiboot_header(ADDRESS_FIELDS, fields) + (b"c" * 20 if fields else b"")
    with pytest.raises(ConfigError, match=message):
        load(flat)


def test_images_that_cannot_start_in_32_bit_mode_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^x: a Multiboot header without address fields, in a 64-bit"):
        load(elf64([Load(BASE, multiboot_header())], BASE))
    with pytest.raises(ConfigError, match=r"in a file that is no ELF$"):
        load(multiboot_header())
    with pytest.raises(ConfigError, match=r"requires features that are not there \(flags 0x8010\)"):
        load(multiboot_elf(flags=0x8011))
    with pytest.raises(ConfigError, match="outside of guest memory"):
        load(elf32([Load(BASE, multiboot_header() + b"x"), Load(0xFFFFFFFF, b"", 2)], BASE), memory=5 << 30)


def test_guest_finds_what_it_finds_under_qemu(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"first module\n" * 400)
    (tmp_path / "two").write_bytes(b"second")
    tail, size = BASE + 0x2000, 0x4000
    image = multiboot_elf(send(0x9500, 88) + send(tail, size) + LEAVE, bss=0x1000)
    (tmp_path / "image").write_bytes(image)
    initrd, append = f"{tmp_path}/one a b,{tmp_path}/two", "some  words"
    path = str(tmp_path / "image")
    status, output = qemu("-kernel", path, "-append", append, "-initrd", initrd)
    assert (status, len(output)) == (0, 88 + size)
    ours = load(image, path=path, append=append.encode(), initrd=initrd)
    memory = memory_of(ours)
    wanted, found = struct.unpack("<22I", output[:88]), struct.unpack_from("<22I", memory, 0x9500)
    differing = {at for at in range(22) if wanted[at] != found[at]}
    # The map of QEMU's AMD CPU has one entry more.
    assert differing <= {11}
    assert ours.start.ebx == 0x9500  # type: ignore[union-attr]
    end = output.index(b"qemu\0", 88) - 88
    assert memory[tail : tail + end] == output[88 : 88 + end]
    modules = slice(0x1000, 0x3000 + len("second"))
    assert memory[tail:][modules] == output[88:][modules]
