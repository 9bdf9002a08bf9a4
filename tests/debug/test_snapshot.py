"""Snapshots in files: a way back to a position, and what is refused of files that are not as they were."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from shadowvm.config import MIB, MachineConfig
from shadowvm.debug.launch import target_maker
from shadowvm.debug.monitor import Monitor
from shadowvm.debug.position import Position
from shadowvm.debug.snapshot import Snapshot, parse_snapshot, read_snapshot, write_snapshot
from shadowvm.debug.timeline import Timeline
from shadowvm.errors import ConfigError
from shadowvm.guests import find_image
from shadowvm.params import KvmParams
from tests.debug.machines import TOUCH

CONFIG = MachineConfig(find_image("memtouch")[1], "memtouch", host_memory=2 * MIB, append=TOUCH, quantum=(100, 200))
SNAPSHOT = Snapshot(CONFIG, Position(5, 6, between=False), "hash", inputs=(1, "a"))


@pytest.fixture(scope="module")
def monitor() -> Iterator[Monitor]:
    timeline = Timeline(target_maker(CONFIG))
    yield Monitor(timeline)
    timeline.close()


def test_a_position_inside_a_fault_comes_back_from_a_file(monitor: Monitor, tmp_path: Path) -> None:
    path = tmp_path / "in a fault.snap"
    for command in ("restart", "break swap_readpage", "c", "phase 3", f"savevm {path}"):
        monitor.execute(command)
    where, state = monitor.timeline.position, monitor.execute("hash")
    assert not where.between
    assert path.stat().st_size < 4096
    monitor.execute("restart")
    told = monitor.execute(f"loadvm {path}")
    assert (monitor.timeline.position, monitor.execute("hash")) == (where, state)
    assert str(where) in told[0]
    assert "event 1 " in f"{monitor.execute('replay_seek event 1')} ".replace(",", " ")
    monitor.execute("delete")
    monitor.execute("c")
    end = monitor.execute("hash")
    monitor.execute(f"savevm {path}")
    monitor.execute("restart")
    assert "the guest has ended" in monitor.execute(f"loadvm {path}")[0]
    assert monitor.execute("hash") == end


def test_what_comes_out_otherwise_is_refused_and_the_machine_stays(monitor: Monitor, tmp_path: Path) -> None:
    path = tmp_path / "snap"
    monitor.execute("restart")
    monitor.execute("stepi 1000")
    monitor.execute(f"savevm {path}")
    snapshot = read_snapshot(str(path))
    where, state = monitor.timeline.position, monitor.execute("hash")
    for other in (snapshot._replace(state="0" * 64), snapshot._replace(position=Position(1000, 77))):
        write_snapshot(str(path), other)
        with pytest.raises(ConfigError, match="comes to another state at instruction 1000"):
            monitor.execute(f"loadvm {path}")
    write_snapshot(str(path), snapshot._replace(inputs=(1,)))
    with pytest.raises(ConfigError, match="inputs that this program cannot repeat"):
        monitor.execute(f"loadvm {path}")
    assert (monitor.timeline.position, monitor.execute("hash")) == (where, state)


def test_everything_that_a_machine_is_made_from_comes_back(tmp_path: Path) -> None:
    path = str(tmp_path / "snap")
    (tmp_path / "serial").write_bytes(b"abc")
    config = replace(
        CONFIG,
        poison=((4096, 5), (8192, 6)),
        kvm_params=KvmParams(unsync=0),
        serial_input=str(tmp_path / "serial"),
        append="\udcff é",
        swap=0,
    )
    write_snapshot(path, SNAPSHOT._replace(config=config))
    assert read_snapshot(path) == SNAPSHOT._replace(config=config)
    (tmp_path / "serial").write_bytes(b"abd")
    with pytest.raises(ConfigError, match=r"the serial_input \(.*serial\) is not the one"):
        read_snapshot(path)
    (tmp_path / "serial").unlink()
    with pytest.raises(ConfigError, match="the serial_input"):
        read_snapshot(path)


def test_a_changed_image_is_refused_and_a_bundled_one_is_found_elsewhere(tmp_path: Path) -> None:
    image, path = tmp_path / "image", str(tmp_path / "snap")
    image.write_bytes(Path(str(CONFIG.image)).read_bytes())
    write_snapshot(path, SNAPSHOT._replace(config=replace(CONFIG, image=str(image))))
    image.write_bytes(image.read_bytes() + b"!")
    with pytest.raises(ConfigError, match=r"the image .* is not the one that the snapshot was made from"):
        read_snapshot(path)
    image.unlink()
    assert read_snapshot(path).config.image == CONFIG.image


def sealed(record: Any, version: int = 1) -> bytes:
    body = json.dumps(record).encode() if not isinstance(record, bytes) else record
    return f"shadowvm snapshot {version}\n{hashlib.sha256(body).hexdigest()}\n".encode() + body


def test_files_that_are_none_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "snap"
    write_snapshot(str(path), SNAPSHOT)
    whole = path.read_bytes()
    record = json.loads(whole.split(b"\n", 2)[2])
    config = record["config"]
    wrong: list[tuple[bytes, str]] = [
        (b"", "is no snapshot"),
        (b"\x7fELF\n\n", "is no snapshot"),
        (whole[:-1], "truncated or damaged"),
        (whole[:40], "truncated or damaged"),
        (whole.replace(b"memtouch", b"memtoucx"), "truncated or damaged"),
        (whole.replace(b"snapshot 1", b"snapshot 2"), "of version 2; this program reads version 1"),
        (sealed(b"{"), "is no snapshot of version 1"),
        (sealed([]), "is no snapshot of version 1"),
        (sealed(b"[" * 100_000), "is no snapshot of version 1"),
        (sealed({}), "is no snapshot of version 1"),
        (sealed({**record, "position": [1, 2]}), "is no snapshot"),
        (sealed({**record, "position": [1, -2, True]}), "has no position"),
        (sealed({**record, "position": 7}), "is no snapshot of version 1"),
        (sealed({**record, "state": 7}), "has no position"),
        (sealed({**record, "config": {**config, "memory": "64M"}}), "memory is '64M'"),
        (sealed({**record, "config": {**config, "smp": True}}), "smp is True"),
        (sealed({**record, "config": {**config, "quantum": [1]}}), "quantum is"),
        (sealed({**record, "config": {**config, "more": 1}}), "other fields"),
        (sealed({**record, "config": {**config, "kvm_params": {}}}), "knobs"),
    ]
    for data, complaint in wrong:
        with pytest.raises(ConfigError, match=complaint) as refusal:
            parse_snapshot("file", data)
        assert "\n" not in str(refusal.value)
    for path_of_none in (str(tmp_path), str(tmp_path / "none"), "a\0b"):
        with pytest.raises(ConfigError, match=r"directory|No such file|null"):
            read_snapshot(path_of_none)


def test_mutated_files_are_read_or_refused() -> None:
    random = Random(3)
    body = json.dumps({"config": {}, "files": {}, "inputs": [], "position": [0, 0, True], "ended": False, "state": ""})
    for _ in range(300):
        data = bytearray(sealed(body.encode()))
        for _ in range(random.randrange(1, 4)):
            data[random.randrange(len(data))] = random.randrange(256)
        if random.random() < 0.7:
            data = bytearray(sealed(bytes(data).split(b"\n", 2)[-1]))
        with pytest.raises(ConfigError):
            parse_snapshot("file", bytes(data))


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "snap"
    write_snapshot(str(path), SNAPSHOT)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="No such file"):
        write_snapshot(str(tmp_path / "none" / "snap"), SNAPSHOT)
    with pytest.raises(ConfigError, match="not a regular file"):
        write_snapshot("/dev/full", SNAPSHOT)
    (tmp_path / f".snap.{os.getpid()}").mkdir()
    with pytest.raises(ConfigError, match="File exists"):
        write_snapshot(str(path), SNAPSHOT._replace(state="other"))
    assert path.read_bytes() == before
