"""Page tables used in odd ways: as stacks, under CR0.WP = 0, with stores that are no entries.

A guest here builds its own tables over the boot's: VA 0x40000000 is mapped by a table at TABLE, that at 0x40200000 by
one at TABLE2. Each runs in a process of its own, since the bugs it guards against make a vCPU retry for ever.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import EXIT, write_tiny

HERE, THERE = 0x40000000, 0x40200000
PD, TABLE, IDT, TABLE2, PAGE = 0xC000, 0x200000, 0x201000, 0x202000, 0x203000
PS = 0x80
RIGHTS_RO, RIGHTS_RW, RIGHTS_USER_RO = 1, 3, 5
RELOAD = "mov rax, cr3\nmov cr3, rax\n"
CLEAR_WP = "mov rax, cr0\nbtr eax, 16\nmov cr0, rax\n"
CR4_SMEP, CR4_SMAP = 20, 21


def gate(vector: int, handler: str) -> str:
    at = IDT + 16 * vector
    return (
        f"mov eax, {handler}\nmov [{at}], ax\nmov word [{at + 2}], 8\nmov word [{at + 4}], 0x8e00\n"
        f"shr eax, 16\nmov [{at + 6}], ax\nlidt [idtr]\n"
    )


IDTR = f"idtr: dw 0xfff\ndq {IDT}\n"


def map_here(entry: int, index: int = 0) -> str:
    return f"mov qword [{PD}], {TABLE | 7}\nmov qword [{TABLE + 8 * index}], {entry}\n"


def set_cr4(bit: int) -> str:
    return f"mov rax, cr4\nbts eax, {bit}\nmov cr4, rax\n"


@pytest.fixture(params=["on", "off"])
def icount(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def status_of(source: str, directory: Path, icount: str = "on") -> int:
    """Exit status of a checked run that ends by itself, without a violation."""
    return run(source, directory, icount)["outcome"]["status"]  # type: ignore[no-any-return]


def run(source: str, directory: Path, icount: str = "on") -> Any:
    guest, report = write_tiny(directory, source), directory / "report.json"
    command = [sys.executable, "-m", "shadowvm", "run", guest, "--check", "-icount", icount, "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    found = json.loads(report.read_text())
    assert found["violations"] == [], done.stderr
    assert found["outcome"]["reason"] == "debug-exit", done.stderr
    return found


def exceptions_on_a_stack_at(rsp: int, setup: str) -> str:
    """Three #UD, counted by a handler, with calls and pushes in between."""
    return (
        f"{setup}{gate(6, 'handler')}{RELOAD}mov rsp, {rsp}\nxor ebx, ebx\nmov ecx, 3\n"
        f"again: ud2\npush rcx\ncall nothing\npop rcx\ndec ecx\njnz again\nmov eax, ebx\n{EXIT}"
        f"nothing: ret\nhandler: inc ebx\nadd qword [rsp], 2\niretq\n{IDTR}"
    )


def test_an_exception_arrives_on_a_stack_that_is_mapped_by_the_page_it_lies_in(tmp_path: Path, icount: str) -> None:
    assert status_of(exceptions_on_a_stack_at(HERE + 0x1000, map_here(TABLE | RIGHTS_RW)), tmp_path, icount) == 3


def test_an_exception_frame_crosses_from_one_page_table_into_another(tmp_path: Path, icount: str) -> None:
    setup = map_here(TABLE | RIGHTS_RW) + map_here(TABLE2 | RIGHTS_RW, 1)
    setup += f"mov qword [{PD + 8}], {TABLE2 | 3}\nmov qword [{TABLE2 + 8 * 9}], {PAGE | 3}\n{RELOAD}"
    setup += f"mov al, [{THERE + 9 * 0x1000}]\n"
    assert status_of(exceptions_on_a_stack_at(HERE + 0x1010, setup), tmp_path, icount) == 3


def test_pushf_to_a_page_table_stores_what_popf_needs(tmp_path: Path, icount: str) -> None:
    source = map_here(TABLE | RIGHTS_RW) + RELOAD + f"mov rsp, {HERE + 0x1000}\nstc\npushfq\nclc\npopfq\nsetc al\n"
    assert status_of(source + f"movzx eax, al\n{EXIT}", tmp_path, icount) == 1


def test_a_store_that_is_no_entry_drops_the_root_in_use(tmp_path: Path) -> None:
    assert status_of(f"mov word [0x9802], 5\nmovzx eax, word [0x9802]\n{EXIT}", tmp_path) == 5


def test_without_wp_supervisor_code_stores_to_its_own_read_only_page_under_smep(tmp_path: Path) -> None:
    source = f"mov esi, code\nmov edi, {PAGE}\nmov ecx, end - code\nrep movsb\n" + map_here(PAGE | RIGHTS_RO)
    source += set_cr4(CR4_SMEP) + CLEAR_WP + f"mov eax, {HERE}\nmov ecx, 200\njmp rax\n"
    source += f"code: inc byte [{HERE + 0x100}]\n{RELOAD}loop code\nmovzx eax, byte [{HERE + 0x100}]\n{EXIT}end:\n"
    found = run(source, tmp_path)
    assert found["outcome"]["status"] == 200
    assert found["kvm"]["pf_taken"] < 100


def test_without_wp_a_store_to_a_user_page_opens_no_way_past_smap(tmp_path: Path) -> None:
    source = map_here(PAGE | RIGHTS_USER_RO) + "mov dword [0x9000], 0xa007\nmov dword [0xa008], 0xc007\n"
    source += gate(14, "handler") + set_cr4(CR4_SMAP) + CLEAR_WP
    source += f"stac\nmov byte [{HERE}], 7\nclac\nmov al, [{HERE}]\nmov eax, 99\n{EXIT}"
    source += f"handler: pop rax\nstac\nadd al, [{HERE}]\n{EXIT}{IDTR}"
    assert status_of(source, tmp_path) == 8


@pytest.mark.parametrize("rights", [RIGHTS_RO, RIGHTS_USER_RO])
def test_without_wp_one_instruction_copies_inside_a_read_only_large_page(rights: int, tmp_path: Path) -> None:
    source = f"mov dword [0x9000], 0xa007\nmov qword [0xa008], {PS | rights}\n{RELOAD}{CLEAR_WP}"
    source += f"mov esi, {HERE + 0x401000}\nmov edi, {HERE + 0x805000}\nmovsq\n"
    source += f"mov eax, [{HERE + 0x805000}]\nadd eax, 9\n{EXIT}"
    assert status_of(source, tmp_path) == 9


def test_without_wp_a_clean_large_page_is_read_in_two_places_before_a_store_marks_it(tmp_path: Path) -> None:
    source = f"and qword [0xb010], ~0x40\n{RELOAD}{CLEAR_WP}mov eax, [0x400000]\nmov eax, [0x401000]\n"
    source += f"mov ecx, [0xb010]\nmov [0x402000], eax\nmov eax, [0xb010]\nxor eax, ecx\n{EXIT}"
    assert status_of(source, tmp_path) == 0x40
