"""The bundled guests: well-formed, reproducible from their sources, and right under another emulator."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
GUESTS = ROOT / "guests"
BOOT = {
    path.parent.name: tomllib.loads(path.read_text()).get("boot", "long-mode") for path in GUESTS.glob("*/guest.toml")
}
NAMES = sorted(BOOT)
LONG_MODE = [name for name in NAMES if BOOT[name] == "long-mode"]
RUNTIMES = {"common", "common32"}
TOUCHING_LITTLE = {"hello", "access64", "traps", "irqs", "smp-ipi"}
IMAGE_START = 1 << 20
XEN_ELFNOTE_PHYS32_ENTRY = 18
PF_X_AND_W = 3

Boot = Callable[..., tuple[int, str]]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
parse_size = runpy.run_path(str(ROOT / "tools/build_guests"))["parse_size"]


def image_of(name: str) -> Path:
    return GUESTS / name / f"{name}.elf"


def test_every_folder_is_a_guest() -> None:
    folders = {path.name for path in GUESTS.iterdir() if path.is_dir()} - RUNTIMES
    assert folders == set(NAMES)
    assert folders >= {"hello", "memtouch", "sieve", "qsort", "chase", "matmul", "ptchurn", "demand", "smc"}
    assert {name for name in NAMES if BOOT[name] == "multiboot"} >= {"real16", "pm32", "pae32", "access32", "traps32"}


@pytest.mark.parametrize("name", NAMES)
def test_guest_toml_describes_the_guest(name: str) -> None:
    toml = tomllib.loads((GUESTS / name / "guest.toml").read_text())
    assert toml["name"] == name
    assert "\n" not in toml["description"]
    small = name in TOUCHING_LITTLE or BOOT[name] == "multiboot"
    assert small or parse_size(toml["touches"]) > 4 << 20
    for entry in toml.get("parameters", {}).values():
        assert entry.keys() == {"default", "help"}
        parse_size(entry["default"])


@pytest.mark.parametrize("name", LONG_MODE)
def test_image_is_an_elf64_that_both_loaders_take(name: str) -> None:
    with image_of(name).open("rb") as file:
        elf = ELFFile(file)
        loads = [segment.header for segment in elf.iter_segments("PT_LOAD")]
        segments = [segment for segment in elf.iter_segments() if isinstance(segment, NoteSegment)]
        notes = [note for segment in segments for note in segment.iter_notes()]
        assert (elf.elfclass, elf["e_machine"], elf["e_type"]) == (64, "EM_X86_64", "ET_EXEC")
        entry = elf["e_entry"]
    end = IMAGE_START
    for load in sorted(loads, key=lambda load: load.p_paddr):
        assert load.p_paddr == load.p_vaddr
        assert load.p_paddr >= end
        assert load.p_paddr % 4096 == 0
        assert load.p_flags & PF_X_AND_W != PF_X_AND_W
        end = load.p_paddr + load.p_memsz
    assert any(load.p_vaddr <= entry < load.p_vaddr + load.p_filesz and load.p_flags & 1 for load in loads)
    # pyelftools has a name for type 1.
    found = [(note.n_name, note.n_type) for note in notes]
    assert found == [("Xen", XEN_ELFNOTE_PHYS32_ENTRY), ("shadowvm", "NT_GNU_ABI_TAG")]
    assert image_of(name).stat().st_size < 128 << 10


def test_images_are_what_the_sources_give_from_any_directory(build_guests: Run, tmp_path: Path) -> None:
    shutil.copytree(GUESTS, tmp_path / "elsewhere")
    done = build_guests("--check", "--guests", "elsewhere", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_check_names_each_image_that_differs(build_guests: Run, tmp_path: Path) -> None:
    for name in ("common", "hello", "chase"):
        shutil.copytree(GUESTS / name, tmp_path / name)
    main = tmp_path / "hello/main.c"
    main.write_text(main.read_text().replace("Hello from", "Hallo from"))
    (tmp_path / "chase/chase.elf").unlink()
    before = (tmp_path / "hello/hello.elf").read_bytes()
    done = build_guests("--check", "--guests", tmp_path)
    assert done.returncode == 1
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["chase", "hello"]
    assert (tmp_path / "hello/hello.elf").read_bytes() == before


def test_unknown_guest_is_a_usage_error(build_guests: Run) -> None:
    done = build_guests("nosuch")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_missing_compiler_is_one_clear_line() -> None:
    program = (
        "import runpy, sys; sys.modules['ziglang'] = None; sys.argv = ['build_guests'];"
        f"runpy.run_path({str(ROOT / 'tools/build_guests')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"build_guests: no compiler: pip install ziglang==\S+\n", done.stderr)


def test_compiler_is_pinned_once() -> None:
    pinned = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["guests"]
    assert pinned == [f"ziglang=={runpy.run_path(str(ROOT / 'tools/build_guests'))['ZIGLANG_VERSION']}"]


@pytest.mark.parametrize("name", NAMES)
def test_guest_is_right_under_qemu_whatever_the_memory(boot: Boot, name: str) -> None:
    status, output = boot(image_of(name), memory="32M")
    assert status == 0, output
    assert re.fullmatch(rf"{name}: ok checksum=0x[0-9a-f]{{16}}", output.splitlines()[-1])
    assert boot(image_of(name), memory="100M") == (status, output)


SMALLER = {
    "asyncpf": "size=100k tasks=3 work=50",
    "memtouch": "size=100k passes=3",
    "sieve": "limit=64k segment=5000",
    "qsort": "keys=1000 seed=7",
    "chase": "nodes=1000 stride=4k steps=3000 seed=9",
    "matmul": "n=64 k=12",
    "ptchurn": "pages=17 spaces=3 switches=7 rounds=3",
    "demand": "size=100k shared=20k seed=3",
    "smc": "pages=11 rounds=3",
    "dirty_log_test": "pages=20 iterations=3 writes=10 writers=3 seed=2",
    "smp-counter": "count=50 locked=10 pages=3",
    "smp-ipi": "rounds=3 ticks=2 restarts=1",
    "smp-shootdown": "pages=20 changes=30",
    "smp-sieve": "limit=64k segment=1000",
    "smp-smc": "pages=17 turns=2 patches=3",
}


OTHER = {
    "asyncpf": ["size=120k tasks=3 work=50", "size=100k tasks=3 work=51", "size=100k tasks=3 work=50 passes=3"],
    "memtouch": ["size=96k passes=3", "size=100k passes=2"],
    "sieve": ["limit=65k segment=5000"],
    "qsort": ["keys=999 seed=7", "keys=1000 seed=8"],
    "chase": ["nodes=999 stride=4k steps=3000 seed=9", "nodes=1000 stride=4k steps=2999 seed=9"],
    "matmul": ["n=96 k=12", "n=64 k=8"],
    "ptchurn": ["pages=18 spaces=3 switches=7 rounds=3", "pages=17 spaces=3 switches=8 rounds=3"],
    "demand": ["size=104k shared=20k seed=3", "size=100k shared=24k seed=3", "size=100k shared=20k seed=4"],
    "smc": ["pages=12 rounds=3", "pages=11 rounds=2"],
    "dirty_log_test": [
        "pages=21 iterations=3 writes=10 writers=3 seed=2",
        "pages=20 iterations=4 writes=10 writers=3 seed=2",
        "pages=20 iterations=3 writes=11 writers=3 seed=2",
        "pages=20 iterations=3 writes=10 writers=4 seed=2",
        "pages=20 iterations=3 writes=10 writers=3 seed=3",
    ],
    "smp-counter": ["count=51 locked=10 pages=3", "count=50 locked=11 pages=3", "count=50 locked=10 pages=4"],
    "smp-ipi": ["rounds=4 ticks=2 restarts=1", "rounds=3 ticks=1 restarts=1", "rounds=3 ticks=2 restarts=2"],
    "smp-shootdown": ["pages=21 changes=30", "pages=20 changes=31"],
    "smp-sieve": ["limit=65k segment=1000"],
    "smp-smc": ["pages=18 turns=2 patches=3", "pages=17 turns=3 patches=3", "pages=17 turns=2 patches=4"],
}


@pytest.mark.parametrize("name", SMALLER)
def test_parameters_change_the_work(boot: Boot, name: str) -> None:
    status, output = boot(image_of(name), SMALLER[name])
    assert status == 0, output
    last = output.splitlines()[-1]
    assert last.startswith(f"{name}: ok")
    assert last not in {boot(image_of(name), other)[1].splitlines()[-1] for other in OTHER[name]}


@pytest.mark.parametrize(
    ("append", "message"),
    [
        ("sise=1M", "memtouch: unknown parameter: sise=1M\n"),
        ("size=1Q", "memtouch: size=1Q: not a number\n"),
        ("size=", "memtouch: size=: not a number\n"),
        ("size=99999999999999999999", "memtouch: size=99999999999999999999: not a number\n"),
        ("passes=0", "memtouch: passes=0: outside 1..4294967296\n"),
        ("size=1G", "memtouch: not enough memory: 1048576 KiB more needed"),
    ],
)
def test_impossible_parameters_end_with_a_line_and_2(boot: Boot, append: str, message: str) -> None:
    status, output = boot(image_of("memtouch"), append)
    assert status == 2
    assert output.startswith(message)
    assert output.count("\n") == 1
