"""What is written is what is read, and what is damaged is refused."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shadowvm.config import MIB, MachineConfig
from shadowvm.errors import ConfigError
from shadowvm.events import REGISTRY
from shadowvm.guests import find_image
from shadowvm.machine import Machine
from shadowvm.trace.chunk import TraceEvent
from shadowvm.trace.format import FILE_HEADER, MAGIC, RECORD_SIZE, VERSION
from shadowvm.trace.ftrace import FtraceWriter, layout
from shadowvm.trace.reader import Trace, open_trace
from shadowvm.trace.writer import CHUNK_EVENTS, TraceWriter


@contextmanager
def traced(path: Path, config: MachineConfig, text: io.StringIO) -> Iterator[Machine]:
    """A machine whose events go to a file and, as ftrace lines, to `text`."""
    machine = Machine(config, lambda byte: None)
    with path.open("wb") as file, FtraceWriter(machine, text).watching(), TraceWriter(machine, file).watching():
        yield machine
        machine.close()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """(trace file, ftrace lines) of one run with swapping and three tasks."""
    path, text = tmp_path_factory.mktemp("trace") / "memtouch.trace", io.StringIO()
    config = MachineConfig(find_image("memtouch")[1], "memtouch", 4 * MIB, 2 * MIB, append="size=1792K", seed=3)
    with traced(path, config, text) as machine:
        machine.run()
    return path, text.getvalue().splitlines()[4:]


def lines_of(trace: Trace) -> list[str]:
    return [
        f"{layout(each.task, each.pid, each.vcpu, each.now)}: {each.name}: {trace.text(each)}"
        for each in trace.events()
    ]


def test_every_event_comes_back_as_it_was(recorded: tuple[Path, list[str]]) -> None:
    path, lines = recorded
    trace = open_trace(str(path))
    assert len(lines) > CHUNK_EVENTS
    assert lines_of(trace) == lines
    assert trace.header["guest"] == "memtouch"
    assert trace.header["config"]["host_memory"] == 2 * MIB
    assert (trace.tail, trace.truncated) == ({"events": len(lines)}, False)
    assert path.stat().st_size < 10 * len(lines)


def test_an_instruction_that_kvm_emulates_takes_its_time(tmp_path: Path) -> None:
    path, text = tmp_path / "traps.trace", io.StringIO()
    with traced(path, MachineConfig(find_image("traps")[1], "traps", 4 * MIB, 4 * MIB), text) as machine:
        machine.run()
    trace = open_trace(str(path))
    assert "kvm_msr" in trace.counts()
    assert lines_of(trace) == text.getvalue().splitlines()[4:]


def test_columns_are_the_events(recorded: tuple[Path, list[str]]) -> None:
    trace = open_trace(str(recorded[0]))
    events: dict[str, list[TraceEvent]] = {}
    for event in trace.events():
        events.setdefault(event.name, []).append(event)
    for name, hits in trace.all_columns(list(REGISTRY)).items():
        found = events.get(name, [])
        assert hits.now.tolist() == [event.now for event in found]
        assert [trace.tasks[task].name for task in hits.task] == [event.task for event in found]
        assert hits.vcpu.tolist() == [-1 if event.vcpu is None else event.vcpu for event in found]
        for index, field in enumerate(REGISTRY[name].fields):
            if field in hits.fields:
                assert hits.fields[field].tolist() == [event.args[index] for event in found]
    starts = trace.columns("mmu_notifier_invalidate_range_start").fields
    assert set(starts["range.event.name"]) == {"CLEAR", "UNMAP"}
    assert (starts["range.start"] < starts["range.end"]).all()


def test_a_file_cut_anywhere_is_good_to_its_last_whole_chunk(recorded: tuple[Path, list[str]], tmp_path: Path) -> None:
    data = recorded[0].read_bytes()
    cut = tmp_path / "cut"
    chunks = [(offset, len(chunk.order)) for offset, chunk in open_trace(str(recorded[0]))._chunks()]
    (first, _), (second, events) = chunks[0], chunks[1]
    for size, whole in (
        (first, 0),
        (second, 1),
        (second + 3, 1),
        (second + RECORD_SIZE + 99, 1),
        (len(data) - 1, len(chunks)),
    ):
        cut.write_bytes(data[:size])
        trace = open_trace(str(cut))
        assert sum(1 for _ in trace.events()) == sum(count for _, count in chunks[:whole]) == trace.count
        assert trace.truncated
    assert events > 0


@pytest.mark.parametrize("at", [3, 9, 20, 40])
def test_a_damaged_chunk_is_named_by_file_and_offset(at: int, recorded: tuple[Path, list[str]], tmp_path: Path) -> None:
    data = bytearray(recorded[0].read_bytes())
    offset = [offset for offset, _ in open_trace(str(recorded[0]))._chunks()][1]
    data[offset + at] ^= 1
    bad = tmp_path / "bad"
    bad.write_bytes(data)
    with pytest.raises(ConfigError, match=f"^{bad}: damaged at offset {offset}: [a-z ]+$"):
        lines_of(open_trace(str(bad)))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "empty"),
        (MAGIC, "no trace of shadowvm"),
        (b"\x7fELF" + bytes(60), "no trace of shadowvm"),
        (
            FILE_HEADER.pack(MAGIC, VERSION + 1) + bytes(40),
            f"version {VERSION + 1}; this shadowvm reads version {VERSION}",
        ),
        (FILE_HEADER.pack(MAGIC, VERSION), "ends before its head"),
    ],
)
def test_what_is_no_trace_is_refused(data: bytes, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=complaint):
        open_trace(str(path))
    with pytest.raises(ConfigError, match="No such file"):
        open_trace(str(tmp_path / "none"))
