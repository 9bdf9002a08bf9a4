"""The A20 gate, as kernels test it: with it closed, address bit 20 is 0. Under QEMU the same images answer the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.config import MIB, MMUS
from tests.boot.images import multiboot_elf, qemu
from tests.cpu.asm import asm
from tests.guest_run import config_for, run_checked

LOW, HIGH = 0x7E00, 0x107E00
END = "out 0xf4,eax\n jmp $"
CASES = {
    "it is open at first": (f"mov dword [{LOW}],1\n mov dword [{HIGH}],2\n mov eax,[{LOW}]\n {END}", 1),
    "closed, a store wraps around": (
        f"mov dword [{LOW}],1\n xor eax,eax\n out 0x92,al\n mov dword [{HIGH}],2\n mov eax,[{LOW}]\n {END}",
        2,
    ),
    "a load too, and what is above stays": (
        f"mov dword [{LOW}],5\n mov dword [{HIGH}],6\n xor eax,eax\n out 0x92,al\n mov ebx,[{HIGH}]\n mov al,2\n"
        f" out 0x92,al\n mov eax,[{HIGH}]\n shl ebx,4\n or eax,ebx\n {END}",
        0x56,
    ),
    "every odd megabyte is the one below": (
        f"xor eax,eax\n out 0x92,al\n mov dword [{0x900000 + LOW}],9\n mov al,2\n out 0x92,al\n"
        f" mov eax,[{0x800000 + LOW}]\n {END}",
        9,
    ),
    "the keyboard controller closes and opens it": (
        f"mov dword [{LOW}],1\n mov al,0xd1\n out 0x64,al\n mov al,0xdd\n out 0x60,al\n mov dword [{HIGH}],2\n"
        f" mov ebx,[{LOW}]\n mov al,0xd1\n out 0x64,al\n mov al,0xdf\n out 0x60,al\n mov dword [{HIGH}],7\n"
        f" mov eax,[{LOW}]\n shl eax,4\n or eax,ebx\n {END}",
        0x22,
    ),
    "a loop that opens and closes it": (
        f"mov ecx,50\n mov dword [{LOW}],0\n mov dword [{HIGH}],0\n"
        f" again: xor eax,eax\n out 0x92,al\n inc dword [{HIGH}]\n mov al,2\n out 0x92,al\n add dword [{HIGH}],2\n"
        f" loop again\n mov eax,[{LOW}]\n cmp dword [{HIGH}],100\n je ok\n xor eax,eax\n ok: {END}",
        50,
    ),
}


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("host_memory", [16 * MIB, 2 * MIB], ids=["plenty", "little"])
@pytest.mark.parametrize("mmu", MMUS)
def test_a20(case: str, host_memory: int, mmu: str, tmp_path: Path) -> None:
    source, status = CASES[case]
    image = tmp_path / "image"
    image.write_bytes(multiboot_elf(asm(source, 0x40000C, 32)))
    result = run_checked(config_for(str(image), host_memory=host_memory, mmu=mmu))
    assert result.law is None, result.report
    assert result.outcome is not None
    assert result.outcome.status == status


@pytest.mark.parametrize("case", sorted(CASES))
def test_qemu_answers_the_same(case: str, tmp_path: Path) -> None:
    source, status = CASES[case]
    image = tmp_path / "image"
    image.write_bytes(multiboot_elf(asm(source, 0x40000C, 32)))
    assert qemu("-kernel", image)[0] == status
