from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowvm.config import (
    MAX_GUEST_MEMORY,
    MIB,
    MIN_HOST_MEMORY,
    MachineConfig,
    format_size,
    parse_quantum,
    parse_size,
    parse_smp,
    parse_time,
)
from shadowvm.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", MIB), ("64", 64 * MIB), ("4k", 4096), ("3M", 3 * MIB), ("2G", 2 << 30), ("1t", 1 << 40), ("0", 0)],
)
def test_sizes_are_qemus(text: str, size: int) -> None:
    assert parse_size(text, "-m") == size


@pytest.mark.parametrize("text", ["", "M", "-1", "+1", "1.5G", "1MB", "1 M", "0x10", "1e3", "\u0661", "9" * 16, "1\n"])
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="--swap: "):
        parse_size(text, "--swap")


@given(st.integers(0, 1 << 49))
def test_a_size_survives_formatting_if_it_is_whole_kilobytes(size: int) -> None:
    kilobytes = size << 10
    text = format_size(kilobytes)
    assert kilobytes == (0 if text == "0 bytes" else parse_size(text, "size"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory": 0},
        {"smp": 0},
        {"smp": 17},
        {"smp": 2, "icount": False},
        {"smp": 2, "host_memory": MIN_HOST_MEMORY},
        {"quantum": (0, 0)},
        {"quantum": (5, 4)},
        {"quantum": (1, 2_000_000_000)},
        {"memory": MIB - 4096},
        {"memory": MIB + 1},
        {"memory": MAX_GUEST_MEMORY + 4096},
        {"host_memory": MIN_HOST_MEMORY - 4096},
        {"host_memory": MIN_HOST_MEMORY + 1},
        {"host_memory": 1 << 60},
        {"swap": 4097},
        {"swap": MAX_GUEST_MEMORY + 4096},
        {"timeout_instructions": 1, "icount": False},
        {"swap_latency": 1, "icount": False},
        {"thp": "yes"},
    ],
    ids=str,
)
def test_impossible_machines_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        MachineConfig(image="x", **wrong).validate()
    assert "\n" not in str(error.value)


def test_the_smallest_machine_is_allowed() -> None:
    MachineConfig(image="x", memory=MIB, host_memory=MIN_HOST_MEMORY, swap=0).validate()


def test_swap_defaults_to_the_guests_memory() -> None:
    assert MachineConfig(image="x", memory=5 * MIB).swap_size == 5 * MIB
    assert MachineConfig(image="x", memory=5 * MIB, swap=0).swap_size == 0


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("4", 4),
        ("cpus=3", 3),
        ("4,sockets=1,cores=2,threads=2", 4),
        ("sockets=2,cores=2", 4),
        ("2,maxcpus=4,cores=4", 2),
        ("16", 16),
    ],
)
def test_smp_is_qemus(text: str, cpus: int) -> None:
    assert parse_smp(text) == cpus


@pytest.mark.parametrize(
    "text", ["", "two", "-1", "4,cores=3", "4,maxcpus=2", "4,", "cores", "4,cpus=", "1e1", "\u0662", "999999"]
)
def test_a_topology_that_does_not_come_out_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="-smp: "):
        parse_smp(text)


@pytest.mark.parametrize(("text", "quantum"), [("1", (1, 1)), ("500", (500, 500)), ("1-10000", (1, 10000))])
def test_a_quantum_is_a_number_or_a_range(text: str, quantum: tuple[int, int]) -> None:
    assert parse_quantum(text) == quantum


@pytest.mark.parametrize("text", ["", "-5", "5-", "1-2-3", "1k", "0x10"])
def test_what_is_no_quantum_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--quantum: "):
        parse_quantum(text)


@pytest.mark.parametrize(("text", "ns"), [("0", 0), ("7", 7), ("7ns", 7), ("50us", 50_000), ("2ms", 2_000_000)])
def test_a_time_has_a_unit(text: str, ns: int) -> None:
    assert parse_time(text, "--swap-latency") == ns


@pytest.mark.parametrize("text", ["", "us", "-1", "1.5us", "1s", "1 us", "1000ms", "999999999us"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--swap-latency: "):
        parse_time(text, "--swap-latency")
