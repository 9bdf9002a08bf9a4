"""Whatever the bytes: an image that can be stored as it is, or one line. tools/fuzz_loaders does more of it."""

from __future__ import annotations

import runpy
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowvm.boot.image import BootImage, BootOptions, Segment
from shadowvm.boot.load import parse_image

from .images import MIB, PT_NOTE, Load, elf32, elf64, multiboot_elf, multiboot_header, note

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools/fuzz_loaders"
BASE = 4 * MIB
fuzzer = runpy.run_path(str(TOOL))
judge: Callable[[bytes, BootOptions], str] = fuzzer["judge"]
check_image: Callable[[BootImage, int, BootOptions], None] = fuzzer["check_image"]

HEADERS = 0x140
VALID = [
    elf64([Load(BASE, b"code" * 9), Load(BASE + 0x1000, b"data", 0x5000)], BASE),
    elf32([Load(BASE, multiboot_header() + b"code" * 9), Load(BASE + 0x1000, b"data", 0x5000)], BASE + 12),
    multiboot_header(1 << 16, [BASE, BASE, BASE + 60, BASE + 99, BASE + 32]) + b"code" * 9,
    elf64([Load(BASE, b"code" * 9), Load(BASE, note(18, struct.pack("<Q", BASE)), kind=PT_NOTE, align=4)], 0),
    elf32([Load(BASE, b"code" * 9), Load(BASE, note(18, struct.pack("<I", BASE)), kind=PT_NOTE, align=4)], 0),
]
numbers = st.one_of(st.sampled_from(fuzzer["INTERESTING"]), st.integers(0, (1 << 64) - 1))
edits = st.lists(st.tuples(st.integers(0, HEADERS // 2 - 1), st.sampled_from((1, 2, 4, 8)), numbers), max_size=6)
options = st.builds(BootOptions, st.sampled_from(fuzzer["MEMORY"]), st.binary(max_size=20))


@pytest.mark.parametrize("image", VALID)
def test_the_images_that_are_changed_below_are_right(image: bytes) -> None:
    assert judge(image, BootOptions(64 * MIB)) == "image"


@settings(max_examples=2000, deadline=2000, derandomize=True)
@given(st.sampled_from(VALID), edits, st.none() | st.integers(0, HEADERS), options)
def test_changed_headers_give_an_image_or_one_line(
    image: bytes, changes: list[tuple[int, int, int]], cut: int | None, machine: BootOptions
) -> None:
    data = bytearray(image)
    for at, width, value in changes:
        struct.pack_into(f"<{width}s", data, 2 * at % (len(data) - 8), value.to_bytes(8, "little"))
    judge(bytes(data[:cut]), machine)


@settings(max_examples=300, deadline=2000, derandomize=True)
@given(st.binary(max_size=200), st.sampled_from((b"", b"\x7fELF", b"\x7fELF\x01\x01", b"\x7fELF\x02\x01")), options)
def test_noise_gives_one_line(noise: bytes, magic: bytes, machine: BootOptions) -> None:
    assert judge(magic + noise, machine) != "image"


@pytest.mark.parametrize(
    "wrong",
    [
        Segment(64 * MIB - 4, b"12345", 5),  # type: ignore[arg-type]
        Segment(BASE + 12, b"", 1),  # type: ignore[arg-type]
        Segment(2 * MIB, b"12", 1),  # type: ignore[arg-type]
        Segment(2 * MIB, bytes(2 * MIB), 2 * MIB),  # type: ignore[arg-type]
    ],
)
def test_an_image_that_cannot_be_stored_would_be_noticed(wrong: Segment) -> None:
    data = multiboot_elf()
    image = parse_image("x", data, BootOptions(64 * MIB))
    check_image(image, len(data), BootOptions(64 * MIB))
    with pytest.raises(AssertionError):
        check_image(image._replace(segments=[*image.segments, wrong]), len(data), BootOptions(64 * MIB))


def test_the_tool_reports_what_it_saw(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOL), "--count", "60", "--seed", "7", "--keep", str(tmp_path)]
    runs = [subprocess.run(command, capture_output=True, text=True, check=False).stdout for _ in range(2)]
    lines = [run.splitlines() for run in runs]
    assert lines[0][:-1] == lines[1][:-1]
    assert lines[0][-1].startswith("      60 inputs, ")
    assert sum(int(line.split()[0]) for line in lines[0][:-1]) == 60
