"""The guests for several CPUs under QEMU, whose vCPUs run truly at once: one output; and that they check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.boot.images import ONE_THREAD
from tests.guest_run import config_for, run_checked

GUESTS = Path(__file__).resolve().parents[2] / "guests"
NAMES = ("dirty_log_test", "smp-counter", "smp-ipi", "smp-shootdown", "smp-sieve", "smp-smc", "smp32")
LITTLE = {
    "smp-counter": "count=400 locked=100 pages=3",
    "smp-sieve": "limit=8k segment=64",
    "smp-smc": "pages=48 patches=20",
}
NOT_ATOMIC = 'pass[which].next; __asm__ volatile("" : "+r"(number)); pass[which].next = number + 1;'
LESS_PATIENT = {"common/smp/smp.h": ("1UL << 27", "1UL << 17")}
"""How long the guest waits until it takes that for a deadlock."""

Boot = Callable[..., tuple[int, str]]


@pytest.mark.parametrize("name", NAMES)
def test_output_is_the_same_for_any_number_of_cpus(boot: Boot, name: str) -> None:
    image = GUESTS / name / f"{name}.elf"
    append, accel = ("pages=16 turns=2 patches=1", ONE_THREAD) if name == "smp-smc" else ("", "tcg")
    status, output = boot(image, append)
    assert status == 0, output
    for smp in (2, 4):
        assert boot(image, append, smp=smp, accel=accel) == (status, output)


def test_more_cpus_than_the_runtime_has_room_for(boot: Boot) -> None:
    status, output = boot(GUESTS / "smp-sieve/smp-sieve.elf", smp=17)
    assert (status, output) == (2, "smp-sieve: 17 CPUs are more than 16\n")


def test_x2apic_mode_that_is_not_there_is_asked_for(boot: Boot) -> None:
    status, output = boot(GUESTS / "smp-ipi/smp-ipi.elf", "x2apic=1")
    assert (status, output) == (2, "smp-ipi: the CPU has no x2APIC mode\n")


@pytest.mark.parametrize(
    ("source", "old", "new", "message"),
    [
        ("smp-shootdown/flush.c", "	flush_here();\n	apic_eoi", "	apic_eoi", "FAILED CPU"),
        ("smp-shootdown/flush.c", "invlpg(gva_of(i));", "(void)i;", "FAILED CPU"),
        ("smp-shootdown/flush.c", "write_cr3(read_cr3());", "", "FAILED CPU"),
        ("smp-shootdown/flush.c", "cr4 & ~CR4_PGE", "cr4", "FAILED CPU"),
        ("smp-shootdown/flush.c", "	atomic_xadd(&request.acks, 1);", "", "waits for the acknowledgements"),
        ("smp-shootdown/main.c", "bool grows = ", "bool grows = change == PROTECT || ", "the write's fault 0xff"),
    ],
)
def test_missing_flush_or_acknowledgement_is_noticed(
    boot: Boot, build_changed: Callable[..., Path], source: str, old: str, new: str, message: str
) -> None:
    image = build_changed("smp-shootdown", {source: (old, new), **LESS_PATIENT})
    # QEMU's threads decide whether a stale entry is met.
    for _ in range(5):
        status, output = boot(image, smp=2)
        if status:
            break
    assert status == 1
    assert message in output


@pytest.mark.parametrize(
    ("guest", "source", "old", "new", "message"),
    [
        ("smp-counter", "smp-counter/main.c", "spin_lock(&ticket_lock);", "", "ticket lock: counter 0 is"),
        ("smp-counter", "smp-counter/main.c", " && !atomic_xchg(&byte_lock, 1)", "", "xchg lock: counter 0 is"),
        ("smp-sieve", "smp-sieve/main.c", "atomic_xadd(&pass[which].next, 1);", NOT_ATOMIC, "smp-sieve: FAILED"),
        ("smp-smc", "smp-smc/stop.c", '== nr_cpus - 1, "all', '>= 0, "all', "FAILED CPU"),
        ("smp-ipi", "smp-ipi/modes.c", "command | ICR_OTHERS", "command | ICR_ALL", "CPU 0 has got"),
    ],
)
def test_what_a_guest_does_wrong_is_noticed(
    build_changed: Callable[..., Path], guest: str, source: str, old: str, new: str, message: str
) -> None:
    image = build_changed(guest, {source: (old, new), **LESS_PATIENT})
    result = run_checked(config_for(str(image), LITTLE.get(guest, ""), smp=4, quantum=(1, 60), seed=1))
    assert result.report == ""
    assert result.outcome is not None
    assert result.outcome.status == 1
    assert message in result.output.decode()
