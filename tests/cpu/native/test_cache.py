"""The compiled callbacks on disk: cold, warm, damaged, and a directory that cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.cpu.native import cache
from shadowvm.errors import ModelBug


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """A cache of our own, with the compiler replaced by one that hands out the real output and counts."""
    payload = cache._read(cache.cache_directory() / f"native-{cache.source_key()}.bin") or cache.compile_objects()
    runs: list[int] = []
    monkeypatch.setenv("SHADOWVM_CACHE", str(tmp_path / "deep" / "cache"))
    monkeypatch.setattr(cache, "_loaded", None)
    monkeypatch.setattr(cache, "compile_objects", lambda: runs.append(1) or payload)
    return runs


def reload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_loaded", None)
    assert cache.load().address["fill"]


def test_a_cold_cache_compiles_once(counted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    reload(monkeypatch)
    reload(monkeypatch)
    assert counted == [1]


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_file_is_compiled_anew(
    counted: list[int], monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    reload(monkeypatch)
    (path,) = cache.cache_directory().iterdir()
    data = bytearray(path.read_bytes())
    if damage is None:
        data[-100] ^= 1
    path.write_bytes(bytes(data) if damage is None else damage)
    reload(monkeypatch)
    reload(monkeypatch)
    assert counted == [1, 1]


def test_a_directory_that_cannot_be_written_costs_time_only(
    counted: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SHADOWVM_CACHE", str(tmp_path / "file" / "below"))
    reload(monkeypatch)
    reload(monkeypatch)
    assert counted == [1, 1]


def test_directories_in_the_order_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHADOWVM_CACHE", "/a")
    assert cache.cache_directory() == Path("/a")
    monkeypatch.delenv("SHADOWVM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache.cache_directory() == Path("/b/shadowvm")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_directory() == Path.home() / ".cache/shadowvm"


def test_a_compiler_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache.sys, "executable", "/bin/false")
    with pytest.raises(ModelBug, match="cannot compile"):
        cache.compile_objects()


def test_the_compiler_s_output_does_not_depend_on_the_run() -> None:
    path = cache.cache_directory() / f"native-{cache.source_key()}.bin"
    cache.load()
    assert cache._split(cache._read(path) or b"{}\n") == cache._split(cache.compile_objects())
