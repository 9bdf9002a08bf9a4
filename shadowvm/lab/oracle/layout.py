"""Where things are in the guest of the oracle, and what its operations are made of.

Guest memory is three slots: LOW and HIGH stay, MOVING is deleted, created again and moved. The pages of POOL are data
and, at any level, page tables. In each of them a few words are fixed: a link to a page that maps the code which the
operations execute (by the last entries of a table, so that it is at one address in every mode), the same for 32-bit
entries, the last PAE pointer, and an instruction for fetches to find. No operation stores there.

A host page is named by `slot << 16 | page of the slot`, whatever gfn the slot is at.
"""

from __future__ import annotations

NONPAGING, PT32, PAE, PT64, LA57 = range(5)
MODES = ("nonpaging", "pt32", "pae", "pt64", "la57")

PRESENT, WRITABLE, USER, ACCESSED, DIRTY, LARGE = 1, 2, 4, 0x20, 0x40, 0x80
NX = 1 << 63
ADDRESS = 0x000F_FFFF_FFFF_F000
MASK64 = (1 << 64) - 1

LOW, HIGH, MOVING = range(3)
LOW_BASE, LOW_PAGES = 0, 512
HIGH_BASE, HIGH_PAGES = 512, 512
MOVING_PAGES = 8
MOVING_BASES = (0x400, 0x480, 0x1000)
"""Where the third slot can be."""
SLOT_PAGES = {LOW: LOW_PAGES, HIGH: HIGH_PAGES, MOVING: MOVING_PAGES}
IN_SMM = 1 << 16
"""What is added to the number of a slot that system management mode sees."""
SMM_BASE, SMM_OFFSET = 0x3FE, 2
"""Where the third slot would begin inside of SMM; its first pages are missing there."""
HOLES = (0x3FFFF, 0x500, 0x5000)
"""Frames without memory."""
SMALL = (0, 1, 2, 3, 256)
"""Indices into tables that addresses are made of, so that they meet often; the last is of the upper half."""

LINKS, LINKS32, CODE, TRAPS = 0x1F0, 0x1F1, 0x1F2, 0x1F3
"""Pages of the first slot: tables with the fixed links, of 64-bit and of 32-bit entries, the code, and what the CPU
needs to deliver an exception (traps.py)."""
SNIPPET_WORD, PDPTR_WORD, LINK32_WORD, LINK_WORD = 480, 507, 510, 511
FIXED_WORDS = (SNIPPET_WORD, PDPTR_WORD, LINK32_WORD, LINK_WORD)
PDPT_OFFSET = 504 * 8
"""Where CR3 points inside a page in PAE mode."""

POOL_LOW: tuple[int, ...] = (*SMALL, *range(0x40, 0x48))
POOL_HIGH = (*SMALL, *range(0x40, 0x44))
POOL_MOVING = (0, 1, 2, 3)
POOL = (
    *(LOW << 16 | page for page in POOL_LOW),
    *(HIGH << 16 | page for page in POOL_HIGH),
    *(MOVING << 16 | page for page in POOL_MOVING),
)
"""Host pages of data and tables."""
ROOTS: tuple[int, ...] = POOL_LOW
"""Frames that CR3 may name: those whose memory stays."""
WINDOWS: tuple[int, ...] = (
    *POOL_LOW,
    *(HIGH_BASE + page for page in POOL_HIGH),
    *(base + page for base in MOVING_BASES for page in POOL_MOVING),
)
"""gfns that the code can store to by an address that is always mapped."""

_TRAPS, _SUPERVISOR_CODE, _USER_CODE = 508, 509, 510
_TRAPS32, _SUPERVISOR_CODE32, _USER_CODE32 = 1020, 1021, 1022
_BASE64, _BASE_PAE, _BASE32 = 0xFFFF_FFFF_FFE0_0000, 0xFFE0_0000, 0xFF40_0000

KINDS = {
    "r1": b"\x0f\xb6\x37",
    "r4": b"\x8b\x37",
    "r8": b"\x48\x8b\x37",
    "w1": b"\x88\x17",
    "w4": b"\x89\x37",
    "w8": b"\x48\x89\x37",
    "a4": b"\xf0\x0f\xc1\x37",
    "a8": b"\xf0\x48\x0f\xc1\x37",
    "x": b"\xbd",
    "invlpg": b"\x0f\x01\x3f",
    "cr3": b"\x0f\x22\xd8",
    "cr0": b"\x0f\x22\xc0",
    "cr4": b"\x0f\x22\xe0",
    "wrmsr": b"\x0f\x30",
    "wrpkru": b"\x0f\x01\xef",
}
"""Instructions: load, store and LOCK XADD of [rdi] with rsi (or dl) of so many bytes, fetch, and those that control."""
ACCESS_KINDS = tuple(KINDS)[:9]
CROSSING_KINDS = ("r4", "r8", "w4", "w8", "a4", "a8")
STOP = b"\x0f\xa2\xeb\xfe"
"""CPUID, which exits at every privilege level; what is behind it is never executed."""
VECTORS = (13, 14)
"""#GP and #PF, the exceptions that an operation can raise."""
STEP = 16
"""Bytes from one instruction of the code page to the next."""
FETCH_LENGTH = 5


POINTS = (
    "kvm_page_fault",
    "kvm_mmu_seq_sample",
    "kvm_faultin_pfn",
    "get_user_page",
    "handle_mm_fault",
    "host_pte_change",
    "lock_acquire",
    "lock_release",
    "kvm_flush_remote_tlbs",
)
"""Tracepoints at which another thread of the host may come between."""
POINTS_WITHOUT_LOCKS = ("kvm_page_fault", "kvm_mmu_seq_sample", "kvm_faultin_pfn")
"""There it comes to its end before the first goes on."""


def device_word(gpa: int, size: int) -> int:
    """What a load gets where no memory is: bytes that tell the address."""
    return int.from_bytes(bytes((gpa + n) * 0x9E3779B1 >> 17 & 0xFF for n in range(size)), "little")


def code_page() -> bytes:
    """One instruction after the other, each with an exit behind it; then an exit for each of VECTORS."""
    page = b"".join((code + STOP).ljust(STEP, b"\x90") for code in (*KINDS.values(), *[b""] * len(VECTORS)))
    return page.ljust(4096, b"\x90")


def snippet(hpage: int) -> int:
    """The word of a pool page that is executed by fetches: `mov ebp, hpage`, the exit, and HLT to end the block."""
    return int.from_bytes(b"\xbd" + hpage.to_bytes(4, "little") + STOP[:2] + b"\xf4", "little")


def code_address(mode: int, cpl: int) -> int:
    """Where the code page is mapped: for the supervisor by an entry without U, which SMEP and SMAP ask for."""
    if mode == NONPAGING:
        return CODE << 12
    if mode == PT32:
        return _BASE32 + ((_USER_CODE32 if cpl else _SUPERVISOR_CODE32) << 12)
    base = _BASE64 if mode >= PT64 else _BASE_PAE
    return base + ((_USER_CODE if cpl else _SUPERVISOR_CODE) << 12)


def handler_address(mode: int, vector: int) -> int:
    """Where the CPU continues after one of VECTORS."""
    return code_address(mode, 0) + STEP * (len(KINDS) + VECTORS.index(vector))


def traps_address(mode: int) -> int:
    """Where the supervisor has the page TRAPS."""
    if mode == NONPAGING:
        return TRAPS << 12
    if mode == PT32:
        return _BASE32 + (_TRAPS32 << 12)
    return (_BASE64 if mode >= PT64 else _BASE_PAE) + (_TRAPS << 12)


def window_address(mode: int, gfn: int) -> int:
    """An address at which the supervisor can always store to a frame of WINDOWS, if there is memory."""
    if mode == NONPAGING:
        return gfn << 12
    base = _BASE32 if mode == PT32 else _BASE64 if mode >= PT64 else _BASE_PAE
    return base + (WINDOWS.index(gfn) << 12)


def fixed_words(hpage: int) -> dict[int, int]:
    """The words of a pool page that no operation changes."""
    links = LINKS << 12
    return {
        SNIPPET_WORD: snippet(hpage),
        PDPTR_WORD: links | PRESENT,
        LINK32_WORD: (LINKS32 << 12 | PRESENT | WRITABLE | USER | ACCESSED) << 32,
        LINK_WORD: links | PRESENT | WRITABLE | USER | ACCESSED,
    }


def link_tables() -> dict[int, int]:
    """Words of LINKS and LINKS32, by `page << 9 | word`. Everything is marked A and D already."""
    marked = PRESENT | ACCESSED | DIRTY
    words = {LINKS << 9 | LINK_WORD: LINKS << 12 | PRESENT | WRITABLE | USER | ACCESSED}
    words[LINKS << 9 | _USER_CODE] = CODE << 12 | marked | USER
    words[LINKS << 9 | _SUPERVISOR_CODE] = CODE << 12 | marked
    words[LINKS << 9 | _TRAPS] = TRAPS << 12 | marked | WRITABLE
    entries32 = {_USER_CODE32: CODE << 12 | marked | USER, _SUPERVISOR_CODE32: CODE << 12 | marked}
    entries32[_TRAPS32] = TRAPS << 12 | marked | WRITABLE
    for index, gfn in enumerate(WINDOWS):
        words[LINKS << 9 | index] = gfn << 12 | marked | WRITABLE
        entries32[index] = gfn << 12 | marked | WRITABLE
    for index, entry in entries32.items():
        at = LINKS32 << 9 | index >> 1
        words[at] = words.get(at, 0) | entry << 32 * (index & 1)
    return words
