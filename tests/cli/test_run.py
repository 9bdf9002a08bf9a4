"""What a user of `shadowvm run` sees: exit statuses, what is on which stream, and one line for each mistake."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from shadowvm import machine
from shadowvm.cli.main import main
from tests.tiny import EXIT, ORIGIN, assemble, elf, gate, write_tiny

COMMAND = [sys.executable, "-m", "shadowvm", "run"]
Capture = pytest.CaptureFixture[str]


def run(capfd: Capture, *args: str) -> tuple[int, str, str]:
    """(status, stdout, stderr) of one run in this process."""
    status = main(["run", *args])
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return status, out, err


def image(directory: Path, data: bytes) -> str:
    path = directory / "image.elf"
    path.write_bytes(data)
    return str(path)


def assert_refused(result: tuple[int, str, str], *words: str) -> None:
    """Status 125, and nothing but one line on stderr that says what is wrong."""
    status, out, err = result
    assert (status, out, err.count("\n")) == (125, "", 1), err
    assert err.startswith("shadowvm: ")
    for word in words:
        assert word in err


def test_a_name_with_a_newline_makes_one_line_all_the_same(capfd: Capture, tmp_path: Path) -> None:
    (tmp_path / "a\nb").touch()
    assert_refused(run(capfd, str(tmp_path / "a\nb")), "a\\nb: empty file")


def test_a_flat_image_is_entered_where_it_is_told(capfd: Capture, tmp_path: Path) -> None:
    flat = image(tmp_path, assemble(f"mov eax, 7\n{EXIT}"))
    assert run(capfd, flat, "--load-address", hex(ORIGIN))[0] == 7
    assert_refused(run(capfd, flat), "flat image with --load-address")
    for address in ("x", "-1", str(1 << 64)):
        assert_refused(run(capfd, flat, f"--load-address={address}"), f"'{address}' is no address")


@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_status_is_what_the_guest_wrote(status: int, capfd: Capture, tmp_path: Path) -> None:
    guest = write_tiny(tmp_path, f"mov eax, {status}\n{EXIT}")
    assert run(capfd, guest)[0] == status


def test_statuses_beyond_a_byte_stay_failures(capfd: Capture, tmp_path: Path) -> None:
    assert run(capfd, write_tiny(tmp_path, f"mov eax, 0x100\n{EXIT}"))[0] == 255


def test_stdout_carries_the_guest_alone(capfd: Capture) -> None:
    status, out, err = run(capfd, "hello", "-append", "one two")
    assert status == 0
    assert out.splitlines()[-1].startswith("hello: ok checksum=")
    assert "one" in out
    assert "status 0" in err.splitlines()[0]


def test_bytes_of_any_value_reach_stdout(capfd: Capture, tmp_path: Path) -> None:
    guest = write_tiny(tmp_path, f"mov al, 0xff\nout 0xe9, al\nxor eax, eax\nout 0xe9, al\n{EXIT}")
    assert main(["run", guest]) == 0
    sys.stdout.flush()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nosuch"], ["no such file"]),
        (["/nosuch/image.elf"], ["no such file"]),
        (["/"], ["directory"]),
        (["/dev/zero"], ["regular file"]),
        (["hello", "-m", "0"], ["-m"]),
        (["hello", "-m", "4097K"], ["-m"]),
        (["hello", "-m", "513G"], ["-m"]),
        (["hello", "-m", "-5"], ["-m", "-5"]),
        (["hello", "-m", "1.5G"], ["-m", "1.5G"]),
        (["hello", "-m", ""], ["-m"]),
        (["hello", "-m", "9" * 40], ["-m"]),
        (["hello", "--host-memory", "1M"], ["--host-memory", "minimum of 2M"]),
        (["hello", "--host-memory", "0"], ["--host-memory"]),
        (["hello", "--host-memory", "2049K"], ["--host-memory"]),
        (["hello", "--host-memory", "900000T"], ["--host-memory"]),
        (["hello", "--swap", "5K"], ["--swap"]),
        (["hello", "--swap", "many"], ["--swap", "many"]),
        (["hello", "--poison", "0x400000"], ["--poison", "0x400000"]),
        (["hello", "--poison", "0x400000@2h"], ["--poison", "2h"]),
        (["hello", "--poison", "0@1us", "-icount", "off"], ["--poison", "-icount"]),
        (["hello", "--swap-latency", "1h"], ["--swap-latency", "1h"]),
        (["hello", "--swap-latency", "1us", "-icount", "off"], ["--swap-latency", "-icount"]),
        (["hello", "--swap", "100T"], ["--swap"]),
        (["hello", "--swap-file", "/dev/full"], ["/dev/full"]),
        (["hello", "--swap-file", "/nosuch/directory"], ["/nosuch/directory"]),
        (["hello", "--json", "/nosuch/file"], ["/nosuch/file"]),
        (["hello", "--json", "/"], ["directory"]),
        (["hello", "--json", ""], ["No such file"]),
        (["hello", "--trace", "/nosuch/file"], ["/nosuch/file"]),
        (["hello", "--seed", "-1"], ["--seed"]),
        (["hello", "--timeout-instructions", "x"], ["--timeout-instructions"]),
        (["hello", "--timeout-instructions", "5", "-icount", "off"], ["-icount"]),
        (["hello", "--frobnicate"], ["--frobnicate"]),
        (["hello", "-smp", "0"], ["-smp", "1 to 16"]),
        (["hello", "-smp", "17"], ["-smp", "1 to 16"]),
        (["hello", "-smp", "2,cores=3"], ["-smp", "2,cores=3"]),
        (["hello", "-smp", "2", "-icount", "off"], ["-smp", "-icount"]),
        (["hello", "-smp", "4", "--host-memory", "2M"], ["--host-memory", "for 4 CPUs"]),
        (["hello", "-smp", "2", "--quantum", "0"], ["--quantum"]),
        (["hello", "-smp", "2", "--quantum", "9-3"], ["--quantum"]),
        (["hello", "-smp", "2", "--quantum", "fast"], ["--quantum", "fast"]),
        (["hello", "another"], ["another"]),
        (["hello", "-append", "x" * 70000], ["-append"]),
        ([], ["GUEST"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_bad_usage(args: list[str], words: list[str], capfd: Capture) -> None:
    assert_refused(run(capfd, *args), *words)


CODE = b"\xf4"
IMAGES = {
    "not an ELF": (b"#!/bin/sh\n" * 100, "not an ELF"),
    "empty": (b"", "empty"),
    "32-bit": (elf((ORIGIN, CODE, 1), elf_class=1), "32-bit ELF"),
    "another machine": (elf((ORIGIN, CODE, 1), machine=183), "machine"),
    "a shared object": (elf((ORIGIN, CODE, 1), elf_type=3), "executable"),
    "header cut off": (elf((ORIGIN, CODE, 1))[:40], ""),
    "program headers cut off": (elf((ORIGIN, CODE, 1))[:80], "truncated"),
    "segment cut off": (elf((ORIGIN, CODE * 100, 100))[:-50], "truncated"),
    "no segments": (elf(), "segment"),
    "outside of memory": (elf((ORIGIN, CODE, 1), (1 << 30, b"x", 1)), "outside"),
    "beyond 64 bits": (elf((ORIGIN, CODE, 1), ((1 << 64) - 1, b"x", 1)), "outside"),
    "more than memory": (elf((ORIGIN, CODE, 1 << 40)), "outside"),
    "overlapping": (elf((ORIGIN, CODE * 16, 16), (ORIGIN + 8, CODE * 16, 16)), "overlap"),
    "on the boot data": (elf((0x9000, CODE, 1), entry=0x9000), "boot data"),
    "more in the file than in memory": (elf((ORIGIN, CODE * 16, 8)), "memory"),
    "entry nowhere": (elf((ORIGIN, CODE, 1), entry=0x200000), "entry"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_bad_image(name: str, capfd: Capture, tmp_path: Path) -> None:
    data, word = IMAGES[name]
    path = image(tmp_path, data)
    assert_refused(run(capfd, path), path, word)


def test_image_larger_than_host_and_swap(capfd: Capture, tmp_path: Path) -> None:
    data = bytes(range(1, 256)) * (4 << 12)
    path = image(tmp_path, elf((ORIGIN, data, len(data))))
    assert_refused(run(capfd, path, "--host-memory", "2M", "--swap", "0"), "too small")


def test_large_image_is_loaded_through_swap_and_checked(capfd: Capture, tmp_path: Path) -> None:
    data = bytes(range(1, 256)) * (4 << 12)
    code = assemble(f"xor eax, eax\n{EXIT}")
    path = image(tmp_path, elf((ORIGIN, code, len(code)), (0x200000, data, len(data))))
    assert run(capfd, path, "--host-memory", "2M", "--check")[0] == 0


def test_swap_file_that_holds_data_is_left_alone(capfd: Capture, tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("data")
    assert_refused(run(capfd, "hello", "--swap-file", str(file)), "holds data")
    assert file.read_text() == "data"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_swap_file_that_is_read_only(capfd: Capture, tmp_path: Path) -> None:
    file = tmp_path / "swap"
    file.touch(mode=0o400)
    assert_refused(run(capfd, "hello", "--swap-file", str(file)), str(file))


def test_swap_file_is_removed_again(capfd: Capture, tmp_path: Path) -> None:
    file = tmp_path / "swap"
    assert run(capfd, "hello", "--swap-file", str(file))[0] == 0
    assert not file.exists()


def test_file_size_limit_is_found_before_the_run() -> None:
    done = subprocess.run(
        [*COMMAND, "hello"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )
    assert_refused((done.returncode, done.stdout, done.stderr), "swap file")


@pytest.mark.parametrize("call", ["pwritev", "preadv"])
def test_swap_error_ends_the_run(call: str, capfd: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    report = tmp_path / "report.json"
    args = ("memtouch", "-append", "size=3M", "--host-memory", "2M", "--check", "--json", str(report))
    status, out, err = run(capfd, *args)
    assert (status, out) == (126, "")
    assert "Input/output error" in err
    assert json.loads(report.read_text())["outcome"]["reason"] == "swap-error"


def test_short_swap_transfer_ends_the_run(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: sum(map(len, buffers)) - 1)
    status, _, err = run(capfd, "memtouch", "-append", "size=3M", "--host-memory", "2M")
    assert status == 126
    assert "short" in err


def test_swap_error_while_the_image_is_loaded(capfd: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwritev", fail)
    data = b"x" * (4 << 20)
    status, out, err = run(capfd, image(tmp_path, elf((ORIGIN, data, len(data)))), "--host-memory", "2M")
    assert (status, out, err.count("\n")) == (126, "", 1)


@pytest.mark.parametrize("swap", ["0", "1M", "4M"])
def test_full_swap_ends_the_run(swap: str, capfd: Capture) -> None:
    status, out, err = run(capfd, "memtouch", "--host-memory", "2M", "--swap", swap, "--check")
    assert (status, out) == (126, "")
    assert "out of memory" in err


def test_json_describes_the_run(capfd: Capture, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    args = ("memtouch", "-append", "size=3M", "--host-memory", "2M", "--check", "--seed", "5")
    assert run(capfd, *args, "--json", str(report))[0] == 0
    found = json.loads(report.read_text())
    assert found["guest"] == "memtouch"
    assert found["outcome"]["reason"] == "debug-exit"
    assert found["outcome"]["status"] == 0
    assert found["violations"] == []
    assert found["seed"] == 5
    assert re.fullmatch("[0-9a-f]{64}", found["events_sha256"])
    assert {"pf_taken", "pf_fixed", "pf_guest", "mmu_pte_write", "remote_tlb_flush", "exits"} <= set(found["kvm"])
    assert {"pgfault", "pgmajfault", "pswpin", "pgscan_kswapd", "pgsteal_direct"} <= set(found["vmstat"])
    assert found["vmstat"]["pswpout"] > 0
    started, ended = (found["notifier"][f"invalidate_range_{which}"] for which in ("start", "end"))
    assert 0 < ended <= started <= ended + 1, "kswapd may be in the middle of one when the guest ends"
    assert found["tlb"]["fills"] > 0


def test_json_to_stdout_follows_the_guests_output(capfd: Capture) -> None:
    status, out, _ = run(capfd, "hello", "--json", "-")
    assert status == 0
    guest, brace, report = out.partition("{")
    assert guest.startswith("Hello")
    assert json.loads(brace + report)["violations"] == []


def test_json_without_check_has_no_event_digest(capfd: Capture) -> None:
    _, out, _ = run(capfd, "hello", "--json", "-")
    assert "events_sha256" not in out


def test_trace_has_the_layout_of_ftrace(capfd: Capture, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    assert run(capfd, "memtouch", "-append", "size=3M", "--host-memory", "2M", "--trace", str(trace))[0] == 0
    assert main(["trace", str(trace)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "# tracer: nop"
    events = [line for line in lines if not line.startswith("#")]
    layout = re.compile(r" *(.+)-(\d+) +\[\d{3}\] [^ ]{5} +(\d+\.\d{6,9}): ([a-z_0-9]+): .*")
    found = [layout.fullmatch(line) for line in events]
    assert all(found)
    assert {"kvm_entry", "kvm_exit", "kvm_page_fault", "mm_vmscan_kswapd_wake"} <= {each[4] for each in found if each}
    # A port access, which the CPU counts by the block it is in, may be stamped a few instructions late.
    times = [float(each[3]) for each in found if each and each[4] != "kvm_pio"]
    assert times == sorted(times)


@pytest.mark.parametrize("flag", ["--json", "--trace"])
def test_full_disk_under_an_output_file(flag: str, capfd: Capture) -> None:
    status, _, err = run(capfd, "hello", flag, "/dev/full")
    assert status == 125
    assert err == "shadowvm: /dev/full: No space left on device\n"


def test_reader_that_leaves() -> None:
    shell = f"{' '.join(COMMAND)} memtouch -append size=256k --trace - | head -n 1 >&2; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert done.returncode == 141
    assert done.stderr == "# tracer: nop\n"


@pytest.mark.parametrize(("redirect", "status"), [(">/dev/full", 125), (">&-", 0), ("2>&-", 0)])
def test_streams_that_do_not_work(redirect: str, status: int) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{' '.join(COMMAND)} hello {redirect}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert "status 0" not in done.stdout


@pytest.mark.parametrize("icount", ["on", "off"])
def test_instruction_limit(icount: str, capfd: Capture, tmp_path: Path) -> None:
    guest = write_tiny(tmp_path, "again: jmp again")
    if icount == "off":
        assert_refused(run(capfd, guest, "--timeout-instructions", "1000", "-icount", "off"))
        return
    status, _, err = run(capfd, guest, "--timeout-instructions", "1000", "--check")
    assert status == 124
    assert "1000 instructions" in err


WILD = {
    "undefined instruction, no IDT": ("ud2", 127, "triple-fault"),
    "halt": ("hlt", 127, "halted"),
    "divide by zero, no IDT": ("xor ecx, ecx\ndiv ecx", 127, "triple-fault"),
    "memory that is not there": ("mov rax, [0x7fff0000]\nhlt", 127, "halted"),
    "jump to memory that is not there": ("mov eax, 0x7fff0000\njmp rax", 127, "unbacked-memory"),
    "jump to no canonical address": ("mov rax, 0x123456789abcdef0\njmp rax", 127, "triple-fault"),
    "not mapped": ("mov rax, 0x8000000000\nmov rax, [rax]", 127, "triple-fault"),
    "page table beyond memory": ("mov qword [0x9000], 0x7ffff003\nmov rax, cr3\nmov cr3, rax\nhlt", 127, ""),
    "reserved bits in a page table": (
        "mov rax, 0x000ff00000000003\nmov [0x9000], rax\nmov rax, cr3\nmov cr3, rax\nhlt",
        127,
        "",
    ),
    "CR3 beyond memory": ("mov eax, 0x7ffff000\nmov cr3, rax\nhlt", 127, ""),
    "CR3 into code": (f"mov eax, {ORIGIN:#x}\nmov cr3, rax\nhlt", 127, ""),
    "CR3 with reserved bits": ("mov rax, 0x7ff0000000009000\nmov cr3, rax\nhlt", 127, ""),
    "paging off": ("mov rax, cr0\nbtr eax, 31\nmov cr0, rax\nhlt", 127, ""),
    "stack in a page table": (
        "mov esp, 0xb800\npush rax\npush rbx\ncall next\nnext: mov rsp, 0x9ff8\npush rcx\nhlt",
        127,
        "",
    ),
    "stack nowhere": ("xor esp, esp\npush rax\nhlt", 127, ""),
    "IDT in unmapped memory": ("lidt [pointer]\nud2\npointer: dw 0xfff\ndq 0x8000000000", 127, "triple-fault"),
    "page fault handler that is not there": (
        "mov esp, 0x3000000\nlidt [pointer]\nmov rax, 0x8000000000\nmov rax, [rax]\n"
        "pointer: dw 0xff\ndq gate - 14 * 16\ngate: dw 0, 8, 0x8e00, 0\ndd 0x80, 0",
        124,
        "timeout",
    ),
    "string store over its own page tables": (
        "mov edi, 0x9000\nmov ecx, 0x1000\nxor eax, eax\nrep stosq\nhlt",
        127,
        "",
    ),
}


@pytest.mark.parametrize("name", WILD)
def test_wild_guest_ends_in_an_orderly_way(
    name: str, capfd: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, wanted, reason = WILD[name]
    monkeypatch.setattr(machine, "MAX_IDLE_DEADLINES", 1000)  # timer ticks that wake nobody, until it is for ever
    guest = write_tiny(tmp_path, source)
    report = tmp_path / "report.json"
    args = ("--check", "--timeout-instructions", "10000", "--host-memory", "2M", "--json", str(report))
    status, out, err = run(capfd, guest, *args)
    found = json.loads(report.read_text())
    assert found["violations"] == []
    assert (status, out) == (wanted, ""), err
    assert reason in found["outcome"]["reason"]


def test_text_is_no_image_whatever_its_length(capfd: Capture, tmp_path: Path) -> None:
    for size in (1, 3, 4, 16, 63, 64, 65):
        data = (b"\x7fELF" + struct.pack("<60x"))[:size] if size != 65 else b"\x7fELF" + b"\xff" * 61
        assert_refused(run(capfd, image(tmp_path, data)))


_ECHO = f"""
{gate(0x0C)}mov al, 0xef
out 0x21, al
mov dx, 0x3f9
mov al, 1
out dx, al
sti
again: hlt
jmp again
handler:
mov dx, 0x3f8
in al, dx
out dx, al
cmp al, '!'
mov al, 0x20
out 0x20, al
je done
iretq
done:
mov eax, 7
{EXIT}
"""


@pytest.mark.parametrize("memory", ["16M", "2M"])
def test_the_guest_receives_a_file_on_com1_by_interrupts(capfd: Capture, tmp_path: Path, memory: str) -> None:
    text = "all that was typed before the run\n" * 5 + "!"
    (tmp_path / "typed").write_text(text + "more, which it does not read")
    guest = write_tiny(tmp_path, _ECHO)
    status, out, _ = run(capfd, guest, "--host-memory", memory, "--check", "--serial-input", str(tmp_path / "typed"))
    assert (status, out) == (7, text)


def test_a_guest_that_nobody_types_to_sleeps_for_ever(capfd: Capture, tmp_path: Path) -> None:
    guest = write_tiny(tmp_path, _ECHO)
    status, out, err = run(capfd, guest)
    assert (status, out) == (127, "")
    assert "halted" in err
    assert_refused(run(capfd, guest, "--serial-input", str(tmp_path / "none")), "--serial-input: ", "No such file")
