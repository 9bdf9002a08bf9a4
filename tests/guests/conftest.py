"""Building guests from sources and booting images under QEMU; both skip where the tool is missing."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QEMU = "qemu-system-x86_64"
MACHINE = ["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
DEVICES = ["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-device", "pc-testdev"]


@pytest.fixture
def build_guests() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run tools/build_guests with these arguments, in `cwd`."""
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("no compiler: ziglang is not installed")

    def run(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "tools/build_guests"), *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def build(
    build_guests: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> Callable[[str, str, str], Path]:
    """Build a guest from the text of its guest.toml and main.c; the path of its image."""
    shutil.copytree(ROOT / "guests/common", tmp_path / "common")

    def one(name: str, toml: str, source: str) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "guest.toml").write_text(toml)
        (tmp_path / name / "main.c").write_text(source)
        done = build_guests("--guests", tmp_path, name)
        assert done.returncode == 0, done.stderr
        return tmp_path / name / f"{name}.elf"

    return one


@pytest.fixture
def build_changed(
    build_guests: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> Callable[[str, dict[str, tuple[str, str]]], Path]:
    """Build a bundled guest with one piece of some of its sources replaced: {source: (old, new)}."""

    def one(name: str, changes: dict[str, tuple[str, str]]) -> Path:
        for folder in ("common", "common32", name):
            shutil.copytree(ROOT / "guests" / folder, tmp_path / folder, dirs_exist_ok=True)
        for source, (old, new) in changes.items():
            text = (tmp_path / source).read_text()
            assert old in text
            (tmp_path / source).write_text(text.replace(old, new))
        done = build_guests("--guests", tmp_path, name)
        assert done.returncode == 0, done.stderr
        return tmp_path / name / f"{name}.elf"

    return one


@pytest.fixture
def boot() -> Callable[..., tuple[int, str]]:
    """Boot an image under QEMU: its exit value and its output."""
    if shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is not installed")

    def run(
        image: Path, append: str = "", memory: str = "64M", cpu: str = "qemu64", smp: int = 1, accel: str = "tcg"
    ) -> tuple[int, str]:
        size = ["-accel", accel, "-cpu", cpu, "-smp", str(smp), "-m", memory]
        command = [QEMU, *MACHINE, *DEVICES, *size, "-kernel", str(image), "-append", append]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        assert done.returncode & 1, done.stderr
        assert not done.stderr
        return done.returncode >> 1, done.stdout

    return run
