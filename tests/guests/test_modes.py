"""The Multiboot guests, which show real mode and the two ways of 32-bit paging: their images, and that they check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shadowvm.boot.image import BootOptions, ProtectedModeStart
from shadowvm.boot.load import load_image

GUESTS = Path(__file__).resolve().parents[2] / "guests"
NAMES = ("pae32", "pm32", "real16")

Boot = Callable[..., tuple[int, str]]


@pytest.mark.parametrize("name", NAMES)
def test_image_is_loaded_for_protected_mode(name: str) -> None:
    image = load_image(str(GUESTS / name / f"{name}.elf"), BootOptions(32 << 20))
    assert isinstance(image.start, ProtectedModeStart)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("real16", "82 answers, all right"),
        ("pm32", "864 accesses, each as the manual says"),
        ("pae32", "6528 accesses, each as the manual says"),
    ],
)
def test_everything_is_tried(boot: Boot, name: str, line: str) -> None:
    status, output = boot(GUESTS / name / f"{name}.elf")
    assert status == 0
    assert line in output.splitlines()


@pytest.mark.parametrize(
    ("name", "source", "old", "new", "message"),
    [
        ("real16", "real16/real.S", "daa", "das", "DAA of 38 + 45: 0x"),
        ("real16", "real16/real.S", "addw	%bx, %di", "addw	%ax, %di", "primes below 65536: 0x"),
        ("pm32", "pm32/main.c", "(user || wp)", "(user || !wp)", "pm32: FAILED pde 0x"),
        ("pm32", "pm32/main.c", "write_cr4(read_cr4() & ~CR4_PSE);", "", "pm32: FAILED without CR4.PSE"),
        ("pm32", "pm32/main.c", "(DEMAND_PAGES - 1 - index)", "(index & 511)", "lost its content"),
        ("pae32", "pae32/main.c", "set_efer(n & 2 ? EFER_NXE : 0)", "set_efer(0)", "error 0x0 instead of 0x10"),
        ("pae32", "pae32/main.c", "(*leaf & (A | D)) != dirty", "(*leaf & (A | D)) == dirty", "A or D wrong"),
        ("pae32", "pae32/main.c", "page | 1ull << 62 |", "page |", "error 0xffffffff instead of 0x9"),
    ],
)
def test_a_cpu_or_a_guest_that_does_otherwise_is_noticed(
    boot: Boot, build_changed: Callable[..., Path], name: str, source: str, old: str, new: str, message: str
) -> None:
    status, output = boot(build_changed(name, {source: (old, new)}))
    assert status == 1
    assert message in output


def test_trap_that_nobody_handles_is_reported(boot: Boot, build_changed: Callable[..., Path]) -> None:
    image = build_changed("pm32", {"pm32/main.c": ("	build_tables();", '	build_tables(); __asm__("ud2");')})
    status, output = boot(image)
    assert status == 33
    assert output.startswith("pm32: trap 6 error 0x0 at 0x10")


def test_unknown_words_on_the_command_line_end_with_2(boot: Boot) -> None:
    assert boot(GUESTS / "pae32/pae32.elf", "exact=2") == (2, "pae32: unknown parameter: exact=2\n")
