"""What a user of `shadowvm trace` sees."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shadowvm.cli.main import main
from shadowvm.trace.reader import open_trace
from shadowvm.trace.writer import CHUNK_EVENTS
from tests.tiny import EXIT, write_tiny

Capture = pytest.CaptureFixture[str]
SHADOWVM = [sys.executable, "-m", "shadowvm"]


def shadowvm(capfd: Capture, *args: str) -> tuple[int, str, str]:
    """(status, stdout, stderr) of one command in this process."""
    status = main(list(args))
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return status, out, err


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trace of a short run under pressure."""
    path = str(tmp_path_factory.mktemp("trace") / "file")
    assert main(["run", "memtouch", "-append", "size=1792K", "--host-memory", "2M", "--trace", path]) == 0
    return path


def test_a_file_is_printed_as_the_run_itself_would_have(capfd: Capture, tmp_path: Path) -> None:
    guest, path = write_tiny(tmp_path, f"mov eax, 7\n{EXIT}"), str(tmp_path / "trace")
    assert shadowvm(capfd, "run", guest, "--trace", path)[:2] == (7, "")
    expected = shadowvm(capfd, "run", guest, "--trace", "-")[1]
    assert expected.count("\n") > 100
    assert shadowvm(capfd, "trace", path) == (0, expected, "")


def test_equal_runs_write_equal_files(capfd: Capture, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        shadowvm(capfd, "run", "hello", "--seed", "5", "--trace", str(path))
    assert first.read_bytes() == second.read_bytes()


def test_events_are_chosen(capfd: Capture, recorded: str) -> None:
    def chosen(*flags: str) -> list[str]:
        status, out, err = shadowvm(capfd, "trace", recorded, *flags)
        assert (status, err) == (0, "")
        return out.splitlines()[4:]

    entries = chosen("-e", "kvm_entry,kvm:kvm_exit")
    assert {line.split(": ")[1] for line in entries} == {"kvm_entry", "kvm_exit"}
    assert chosen("-e", "kvm_entry", "-e", "kvm_exit") == entries
    walks = chosen("-e", "kvmmmu:*walk")
    assert walks
    assert {line.split(": ")[1] for line in walks} == {"kvm_mmu_pagetable_walk"}
    assert all("gfn 123" in line for line in chosen("-f", "gfn == 0x123 && level"))
    ranges = chosen("-e", "mmu_*", "-f", "range.event.name == CLEAR && range.start >= 0x1000")
    assert {line.split(": ")[1] for line in ranges} == {
        f"mmu_notifier_invalidate_range_{which}" for which in ("start", "end")
    }
    locks = chosen("-e", "lock_release")
    by_task = [len(chosen("-e", "lock_release", "--task", task)) for task in ("kswapd*", "CPU 0/KVM", "exit")]
    assert all(by_task)
    assert sum(by_task) == len(locks)
    assert len(chosen("-e", "lock_release", "--vcpu", "0")) == by_task[1]
    early = chosen("-e", "lock_release", "--time_range", "0", "1ms")
    assert early + chosen("-e", "lock_release", "--time_range", "0.001s", "9s") == locks
    assert early


def test_json_has_a_line_for_each_event_with_named_fields(capfd: Capture, recorded: str) -> None:
    status, out, _ = shadowvm(capfd, "trace", recorded, "--json", "-e", "kvm_page_fault,mmu_*start,lock_acquire")
    events = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    found = {event["event"]: event for event in events}
    assert found["kvm_page_fault"].keys() == {"now", "task", "pid", "vcpu", "event", "fields"}
    assert found["kvm_page_fault"]["fields"].keys() == {"vcpu_id", "guest_rip", "fault_address", "error_code"}
    assert found["lock_acquire"]["fields"]["lock"]["name"]
    assert found["mmu_notifier_invalidate_range_start"]["fields"]["range"]["event"] == {"name": "UNMAP"}


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["-e", "kvm_entri"], "no tracepoint 'kvm_entri'"),
        (["-e", "nosuch*"], "-e: no tracepoint's name is like 'nosuch*'"),
        (["-f", "gfm == 1"], "'gfm' is no field"),
        (["-e", "kvm_entry", "-f", "gfn == 1"], "'gfn' is no field of kvm_entry"),
        (["--time_range", "1", "x"], "'x' is no time"),
        (["--time_range", "1.5", "2"], "'1.5' is no time"),
        (["--vcpu", "x"], "--vcpu"),
    ],
)
def test_bad_usage_is_one_line(flags: list[str], complaint: str, capfd: Capture, recorded: str) -> None:
    status, out, err = shadowvm(capfd, "trace", recorded, *flags)
    assert (status, out, err.count("\n")) == (125, "", 1)
    assert complaint in err


def test_what_is_no_trace_is_one_line(capfd: Capture, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("# tracer: nop\n")
    for path, complaint in (("text", "no trace of shadowvm"), ("none", "No such file or directory"), (".", "Is a dir")):
        status, out, err = shadowvm(capfd, "trace", str(tmp_path / path))
        assert (status, out, err.count("\n")) == (125, "", 1)
        assert complaint in err


def test_a_killed_run_leaves_what_it_had_written(capfd: Capture, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    command = [*SHADOWVM, "run", "memtouch", "--host-memory", "4M", "--trace", str(path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and (not path.exists() or path.stat().st_size < 100_000):
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    status, out, err = shadowvm(capfd, "trace", str(path), "-e", "kvm_exit")
    assert status == 0
    assert out.count("\n") > 4
    events = open_trace(str(path)).counts()
    assert err == f"shadowvm: {path}: cut short, after {sum(events.values())} events in whole chunks\n"
    assert sum(events.values()) % CHUNK_EVENTS == 0


def test_a_reader_that_leaves_ends_it_quietly(recorded: str) -> None:
    shell = f"{' '.join(SHADOWVM)} trace {recorded} | head -n 1 >&2; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "# tracer: nop\n")
