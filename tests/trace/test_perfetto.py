"""A .pftrace has balanced slices, and flows from invalidations to the sptes that are set again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shadowvm.cli.main import main
from shadowvm.trace.chunk import TraceEvent
from shadowvm.trace.format import Event, Mm, RangeRef
from shadowvm.trace.perfetto import packets

HVA = 0x7F0000000000
HEADER = {"guest": "g", "free_pages": 100, "memslots": [{"gpa": 0x4000, "size": 0x100000, "hva": HVA}]}
SPAN = RangeRef(HVA + 0x1000, HVA + 0x2000, Event("CLEAR"), Mm(1), 1)
FIELDS = {
    "kvm_page_fault": ("vcpu_id", "guest_rip", "fault_address", "error_code"),
    "kvm_entry": ("vcpu_id", "rip"),
    "kvm_mmu_set_spte": ("gfn", "spte", "sptep", "level"),
    "mmu_notifier_invalidate_range_start": ("range",),
    "mmu_notifier_invalidate_range_end": ("range",),
    "mm_page_alloc": ("pfn", "order"),
    "kvm_mmu_split_huge_page": ("gfn", "spte", "level", "errno"),
}


def event(now: int, vcpu: int | None, name: str, *args: Any) -> TraceEvent:
    return TraceEvent(now, "kswapd0" if vcpu is None else f"CPU {vcpu}/KVM", 100, vcpu, name, args)


EVENTS = [
    event(10, 0, "kvm_page_fault", 0, 0x1000, 0x5000, 2),
    event(10, None, "mmu_notifier_invalidate_range_start", SPAN),
    event(10, 0, "mm_page_alloc", 7, 1),
    event(10, None, "mmu_notifier_invalidate_range_end", SPAN),
    event(10, 0, "kvm_mmu_set_spte", 5, 0x7003, 0x18000, 1),
    event(10, 0, "kvm_mmu_split_huge_page", 0, 1, 2, -12),
    event(10, 0, "kvm_entry", 0, 0x1000),
    event(20, 0, "kvm_page_fault", 0, 0x1000, 0x6000, 2),
]


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of the fields of a message on the wire."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        elif key & 7 == 1:
            yield key >> 3, int.from_bytes(data[at : at + 8], "little")
            at += 8
        else:
            assert key & 7 == 2
            size = varint()
            assert at + size <= len(data)
            yield key >> 3, data[at : at + size]
            at += size


def test_faults_and_invalidations_are_slices_and_flows_join_them() -> None:
    data = b"".join(packets(HEADER, EVENTS, FIELDS.__getitem__))
    found = [dict(fields(packet)) for number, packet in fields(data) if number == 1]
    assert [each[8] for each in found] == sorted(each[8] for each in found)
    tracks = [dict(fields(each[60]))[1] for each in found if 60 in each]
    assert len(tracks) == len(set(tracks)) == 4, "the process, the counter, a vCPU and kswapd"
    said = [list(fields(each[11])) for each in found if 11 in each]
    kinds = [(dict(each)[9], dict(each)[11] - 16) for each in said]
    begin, end, instant = 1, 2, 3
    vcpu, kswapd = 0, 1
    assert [kind for kind, track in kinds if track == vcpu] == [begin, *[instant] * 3, end, instant, begin, end]
    assert [kind for kind, track in kinds if track == kswapd] == [begin, end]
    flows = [[value for number, value in each if number == 47] for each in said]
    assert [each for each in flows if each] == [[1], [1]]
    assert [dict(each)[30] for each in said if dict(each)[9] == 4] == [100, 98]


def test_nothing_of_a_run_is_lost_and_the_perfetto_package_reads_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    proto = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    trace, out = str(tmp_path / "trace"), tmp_path / "out.pftrace"
    assert main(["run", "hello", "--trace", trace]) == 0
    assert main(["trace", trace]) == 0
    lines = capfd.readouterr().out.split("FUNCTION\n")[1].splitlines()[1:]
    assert main(["trace", trace, "--perfetto", str(out)]) == 0
    read = proto.Trace()
    read.ParseFromString(out.read_bytes())
    names: dict[int, str] = {}
    found: Counter[str] = Counter()
    depth: Counter[int] = Counter()
    for packet in read.packet:
        names |= {each.iid: each.name for each in packet.interned_data.event_names}
        if packet.HasField("track_event"):
            kind = packet.track_event.type
            depth[packet.track_event.track_uuid] += {1: 1, 2: -1}.get(kind, 0)
            assert min(depth.values()) >= 0
            if kind in (1, 3):
                found[names[packet.track_event.name_iid]] += 1
    expected = Counter(line.split(": ")[1] for line in lines)
    del expected["mmu_notifier_invalidate_range_end"]
    del found["mmu_notifier_invalidate_range_end"]
    assert found == expected
    assert not any(depth.values())
