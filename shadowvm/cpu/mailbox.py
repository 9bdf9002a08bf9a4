"""The mailbox: one array of 64-bit words that a virtual CPU's Python and native halves share.

Words are numbered here and nowhere else. Native code sees them as signed, Python (`engine.box`) as unsigned.
"""

from __future__ import annotations

from itertools import count

_next = count().__next__

# Set once, when the engine is made: addresses and sizes.
CPU = _next()
UC = _next()
RAM_BASE = _next()
NR_FRAMES = _next()
EXECUTED = _next()
SHARED_CODE = _next()
"""Bytes like those of EXECUTED, for all CPUs of the machine; EXECUTED itself for one CPU."""
CODE_LISTS = _next()
"""Frames that SUSPECTS and NEW_CODE count, then copies of the former: see smp.py."""
SUSPECTS = _next()
NEW_CODE = _next()
CODE_SLOTS = 64
"""More than so many are not noted."""
FILL_EPOCH = _next()
WRITE_EPOCH = _next()
TB_CACHE = _next()
TCG_CTX = _next()
COUNTING = _next()
FN_SET_PAGE = _next()
FN_FLUSH = _next()
FN_RESTORE = _next()
FN_LOOP_EXIT = _next()
FN_LOOP_EXIT_NOEXC = _next()
FN_DO_INTERRUPT = _next()
FN_HARD_IRQ = _next()
FN_RAISE = _next()
FN_READ_EFLAGS = _next()
FN_WRITE_EFLAGS = _next()
FN_UPDATE_HFLAGS = _next()
FN_TB_LOOKUP = _next()
FN_BLOCK_SLOW = _next()
FN_LEAVE = _next()
FN_OTHER_ROOT = _next()
FN_REFUSE = _next()
FN_WRITABLE_CODE = _next()
FN_WATCHED_ACCESS = _next()
FN_SET_DR = _next()
FN_PORT_IN = _next()
FN_PORT_OUT = _next()
FN_UPDATE_CR0 = _next()
FN_LOAD16 = _next()
FN_LTR = _next()
FN_IRET = _next()
FN_LJMP = _next()
FN_LOAD32 = _next()
FN_STORE16 = _next()
FN_STORE32 = _next()
FN_NESTED_WALK = _next()
FN_READ_CODE = _next()
FN_MARKED = _next()
FN_FILLED = _next()
FN_UNMARK = _next()

# The last exit.
EXIT = _next()
EXIT_VA = _next()
EXIT_ACCESS = _next()
EXIT_FETCH = _next()
"""The instruction at RIP was being fetched, also where EXIT_ACCESS is that of a nested access to a table."""
EXIT_STORE = _next()
"""It stores; likewise."""
EXIT_USER = _next()
EXIT_SMAP = _next()
EXIT_SIZE = _next()
EXIT_STACK = _next()
"""NON_CANONICAL through SS: it is #SS."""
EXIT_LEVEL = _next()
EXIT_TABLE = _next()
EXIT_WHY = _next()
EXIT_GPA = _next()
EXIT_FINAL = _next()
"""EPT_VIOLATION and EPT_MISCONFIG: the address that the nested table does not map, and 1 if it is the page itself, 0 if
a table of the guest."""
EXIT_CR = _next()
EXIT_GPR = _next()
EXIT_INSN_LEN = _next()

# Paging.
ROOT = _next()
ROOT_LEVEL = _next()
"""Levels from ROOT down: 3, 4 or 5."""
CHECKS = _next()
"""CR4 bits SMEP, SMAP, PKE where they are in force: those of the key, if it has paging."""
KEY_CR0 = _next()
KEY_CR3 = _next()
KEY_CR4 = _next()
KEY_EFER = _next()
MASK_CR0 = _next()
MASK_CR3 = _next()
MASK_CR4 = _next()
MASK_EFER = _next()
NR_PREV_ROOTS = 3
PREV_ROOTS = _next()
"""NR_PREV_ROOTS pairs (cr3, root); root 0 is an empty pair."""
for _ in range(2 * NR_PREV_ROOTS - 1):
    _next()
CR3_HITS = _next()
CR3_EXITS = _next()
CR3_RESERVED = _next()
"""Bits of CR3 whose writing is an exit."""
EPOCH = _next()

# Two-dimensional paging: see nested_root.py.
NESTED = _next()
"""ROOT is a nested table: the guest's own tables are walked too."""
NESTED_AD = _next()
"""Nested entries get A and D bits."""
GPA_MASK = _next()
ROM_START, ROM_END = _next(), _next()
"""Guest-physical addresses [start, end): tables of the guest in there get no A and D bits."""
RSVD_ADDR = _next()
RSVD_1G = _next()
RSVD_4M = _next()
"""Reserved in the guest's entries: address bits of 64-bit ones, and more in those of large pages."""
PDPTRS_CR3 = _next()
"""The CR3 that the PAE pointers were loaded at."""
PDPTRS = _next()
for _ in range(3):
    _next()
GUEST_PAGE = _next()
"""Bytes that the guest's leaf maps, by the last walk."""
FAULT_CAUSE = _next()
"""P, RSVD and PK of the error code if the guest's own tables refuse."""
NR_LEVELS = 6
TABLE_GPA = _next()
for _ in range(NR_LEVELS - 1):
    _next()
TABLE_AT = _next()
for _ in range(NR_LEVELS - 1):
    _next()
"""By level: gpa of the entry that a walk uses, and where it is in our memory."""
WINDOWS_OPEN = _next()
"""Not 0 if there may be a window; a bit for each."""
NR_WINDOWS = NR_MMIO_WINDOWS = 2
WINDOW_VA = _next()
"""Two pairs (page address, pfn); NO_WINDOW as address is an empty pair."""
WINDOW_PFN = _next()
WINDOW1_VA = _next()
WINDOW1_PFN = _next()
NO_WINDOW = 1
MMIO_WINDOWS = _next()
"""Two pairs (page address, gpa)."""
for _ in range(2 * NR_MMIO_WINDOWS - 1):
    _next()
MMIO_PFN = _next()
"""Where Unicorn's I/O region starts."""
MMIO_VA = _next()
MMIO_SIZE = _next()
"""The last access to a window."""
TLB_PERIODS = _next()
"""For each mmu_idx: flushes of a TLB that was used."""
_next()
_next()
TLB_WINDOW_PERIODS = 64
"""The TLB may shrink after so many of them."""

# Counting.
BUDGET = _next()
"""Instructions until QUANTUM. Negative for a moment only."""
GRANTED = _next()
"""Sum of all budgets: GRANTED - BUDGET - STOLEN instructions have retired."""
STOLEN = _next()
"""The budget while KICK makes the block hook look up."""
KICK = _next()
LAST_TB = _next()
FRAME_DISTANCE = _next()
"""From the block hook's frame to the return address into the translated block; found out at start-up."""
ASKED = _next()
"""The next block is cut short on our own request."""
SINGLE = _next()
"""RIP of the instruction that must run alone, since its block reaches into a page that cannot be fetched."""
STEP = _next()
STEP_ONE, STEP_DONE, STEP_TRAP, STEP_DELIVERY = 1, 2, 3, 4
"""One instruction, which has run; one by the trap flag; up to the handler of a queued event."""
TSC_OFFSET = _next()
TIME_BASE = _next()
"""What other CPUs have retired: RDTSC adds it."""
TSC_READS = _next()
MISCOUNTS = _next()

# Events.
EVENT_KIND = _next()
EVENT_VECTOR = _next()
EVENT_ERROR = _next()
EVENT_NEXT_RIP = _next()
IRQ_PENDING = _next()
IRQ_VECTOR = _next()
NMI_PENDING = _next()
DELIVERING = _next()
VECTORING = _next()
VEC_VECTOR = _next()
VEC_ERROR = _next()
VEC_NEXT_RIP = _next()
TASK_FROM = _next()
"""The task in which the last delivery began."""
TASK_PENDING = _next()
TASK_NESTED = _next()
TASK_ERROR = _next()
"""What is left of a task switch, the new task's NT, and one more than the error code to push, 0 for none."""
STOP = _next()
NR_BREAKS = _next()
"""How many debugger's breakpoints are set: the first words of BREAKS, linear addresses. Blocks with one of them in it
never get into the cache of blocks, so that they come by the slow hook."""
MAX_BREAKS = 64
BREAKS = _next()
for _ in range(MAX_BREAKS - 1):
    _next()
BREAK_PASSED = _next()
"""The breakpoint that lets the next execution of its instruction pass; -1 for none."""
NR_WATCHPOINTS = _next()
"""How many debugger's watchpoints are set: the first rows of WATCHPOINTS, see native/watch.py."""
MAX_WATCHPOINTS = 32
WATCHPOINT_WORDS = 3
WATCHPOINTS = _next()
"""Rows of WATCH_* bits, first address and address behind the last one."""
for _ in range(WATCHPOINT_WORDS * MAX_WATCHPOINTS - 1):
    _next()
WATCH_READS, WATCH_WRITES, WATCH_PHYSICAL = 1, 2, 4
"""At which accesses; the addresses are host-physical, else linear."""
WATCH_DEVICE = 1 << 62
"""Added to the guest-physical address of a page without memory, to make it a host-physical one."""
WATCHPOINT_HITS = _next()
"""A bit for each row that the instruction before RIP, or a delivery, has hit."""
WATCH_SUSPECT = _next()
"""The last exit, DEBUG, is before an instruction that seems to hit."""
WATCH_PASSING = _next()
"""It is being done: hits are no exits."""
WATCH_PAGE_BEFORE = _next()
"""A page that is watched too, as a load that begins there may reach into a watched one; 1 for none."""
WATCH_LAST_VA = _next()
WATCH_LAST_END = _next()
WATCH_LAST_BACK = _next()
"""The last access to a watched page: addresses, return address."""
WATCHED = _next()
"""How many data breakpoints DR7 has on."""
WATCH_HITS = _next()
"""Bits for DR6: #DB is due after this instruction."""
WATCH_ALONE = _next()
"""RIP of the instruction that hit and is done again alone."""
WATCH_VA = _next()
WATCH_SIZE = _next()
WATCH_BACK = _next()
"""The last access to a watched page: address, size, return address."""
RESUME = _next()
"""RF is set: 1 before the instruction that it is for, 2 after it."""
CHECK_MSRS = _next()
"""WRMSR of what takes canonical addresses is checked and done natively."""

# Statistics only.
FILLS = _next()
FETCH_FILLS = _next()
CODE_FLUSHES = _next()
PORT_IN_COUNT = _next()
PORT_OUT_COUNT = _next()
INTERCEPTS = _next()
GUEST_FAULTS = _next()
"""Page faults that the guest got from its own tables without an exit."""
VECTOR_COUNTS = _next()
NR_WORDS = VECTOR_COUNTS + 256

TB_CACHE_SLOTS = 4096
UNLIMITED = 1 << 62
