"""ELF64 images: what to load where, and where to start (read with pyelftools).

Segments go to their physical addresses. Everything that cannot be loaded is refused with a ConfigError that names
the file and what is wrong with it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

from ..addr import Gpa
from ..errors import ConfigError

_ELF_MAGIC = b"\x7fELF"
_ELFCLASS64 = 2
_ELFDATA2LSB = 1
_EHDR_SIZE = 64
_PHDR_SIZE = 56


class Segment(NamedTuple):
    """`data` at `gpa`, followed by zeros up to `memsz` bytes."""

    gpa: Gpa
    data: bytes
    memsz: int

    @property
    def end(self) -> int:
        """First guest-physical address behind the segment."""
        return self.gpa + self.memsz


class Image(NamedTuple):
    """A loadable guest. `entry` is guest-physical."""

    entry: Gpa
    segments: list[Segment]


def load_elf(path: str, memory_ranges: list[tuple[int, int]], reserved_end: int) -> Image:
    """Read an ELF64 whose segments must lie in `memory_ranges` and above `reserved_end`."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    image = _parse(path, data)
    _check_placement(path, image, memory_ranges, reserved_end)
    return image


def _parse(path: str, data: bytes) -> Image:
    _check_ident(path, data)
    import io  # noqa: PLC0415 - with pyelftools, only a run that gets this far pays for the import

    from elftools.common.exceptions import ELFError  # noqa: PLC0415
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415

    try:
        elf = ELFFile(io.BytesIO(data))
        header = elf.header
        if header["e_machine"] != "EM_X86_64":
            raise ConfigError(f"{path}: made for another machine ({header['e_machine']}), not x86-64")
        if header["e_type"] != "ET_EXEC":
            raise ConfigError(f"{path}: not an executable image (type {header['e_type']})")
        if header["e_phnum"] and header["e_phentsize"] != _PHDR_SIZE:
            raise ConfigError(f"{path}: program headers of {header['e_phentsize']} bytes, not {_PHDR_SIZE}")
        if header["e_phoff"] + header["e_phnum"] * _PHDR_SIZE > len(data):
            raise ConfigError(f"{path}: truncated: program headers reach beyond the end of the file")
        headers = [elf.get_segment(n).header for n in range(header["e_phnum"])]
    except (ELFError, KeyError, ValueError, OverflowError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path}: malformed ELF: {error}") from None
    loads = [each for each in headers if each["p_type"] == "PT_LOAD" and each["p_memsz"]]
    segments = [_segment(path, data, each) for each in loads]
    if not segments:
        raise ConfigError(f"{path}: no segments to load")
    for each in loads:
        if each["p_vaddr"] <= header["e_entry"] < each["p_vaddr"] + each["p_memsz"]:
            return Image(Gpa(header["e_entry"] - each["p_vaddr"] + each["p_paddr"]), segments)
    raise ConfigError(f"{path}: entry {header['e_entry']:#x} is in no segment")


def _check_ident(path: str, data: bytes) -> None:
    if data[:4] != _ELF_MAGIC:
        raise ConfigError(f"{path}: not an ELF image")
    if len(data) < _EHDR_SIZE:
        raise ConfigError(f"{path}: truncated ELF header ({len(data)} bytes)")
    if data[4] != _ELFCLASS64 or data[5] != _ELFDATA2LSB:
        raise ConfigError(f"{path}: not a 64-bit little-endian ELF; build the guest for x86-64")


def _segment(path: str, data: bytes, header: Any) -> Segment:
    offset, filesz, memsz = header["p_offset"], header["p_filesz"], header["p_memsz"]
    if filesz > memsz:
        raise ConfigError(f"{path}: segment at {header['p_paddr']:#x} has more bytes in the file than in memory")
    if offset + filesz > len(data):
        raise ConfigError(f"{path}: truncated: segment at {header['p_paddr']:#x} reaches beyond the end of the file")
    return Segment(Gpa(header["p_paddr"]), data[offset : offset + filesz], memsz)


def _check_placement(path: str, image: Image, memory_ranges: list[tuple[int, int]], reserved_end: int) -> None:
    in_order = sorted(image.segments, key=lambda each: each.gpa)
    for segment in in_order:
        where = f"segment {segment.gpa:#x}-{segment.end:#x}"
        if not any(start <= segment.gpa and segment.end <= end for start, end in memory_ranges):
            raise ConfigError(f"{path}: {where} lies outside of guest memory; give more with -m")
        if segment.gpa < reserved_end:
            raise ConfigError(f"{path}: {where} overlaps the boot data below {reserved_end:#x}")
    for lower, upper in pairwise(in_order):
        if upper.gpa < lower.end:
            raise ConfigError(f"{path}: segments at {lower.gpa:#x} and {upper.gpa:#x} overlap")
