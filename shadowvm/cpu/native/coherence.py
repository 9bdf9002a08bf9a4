"""What smp.py needs to know: which frames become code, and who may write to code. See there."""
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

from .. import layout as lay
from .. import mailbox as mb
from .memory import get, inline, ld8, ld64, put, st8, st64

PAGE_WORDS = 512
NEW_AT, COPIES_AT = 8 * mb.CODE_SLOTS, 16 * mb.CODE_SLOTS


@inline
def note_new_code(box, pfn):
    """The first fetch from a frame by any CPU."""
    shared = get(box, mb.SHARED_CODE) + pfn
    if get(box, mb.SHARED_CODE) != get(box, mb.EXECUTED) and ld8(shared) == 0:
        st8(shared, 1)
        count = get(box, mb.NEW_CODE)
        if count < mb.CODE_SLOTS:
            st64(get(box, mb.CODE_LISTS) + NEW_AT + 8 * count, pfn)
        put(box, mb.NEW_CODE, count + 1)


@inline
def note_suspect(box, pfn):
    """This CPU gets a writable TLB entry for a frame that another executes: keep what is in it now."""
    count, lists = get(box, mb.SUSPECTS), get(box, mb.CODE_LISTS)
    for i in range(min(count, mb.CODE_SLOTS)):
        if ld64(lists + 8 * i) == pfn:
            return
    if count < mb.CODE_SLOTS:
        st64(lists + 8 * count, pfn)
        source, copy = get(box, mb.RAM_BASE) + (pfn << 12), lists + COPIES_AT + (count << 12)
        for i in range(PAGE_WORDS):
            st64(copy + 8 * i, ld64(source + 8 * i))
    put(box, mb.SUSPECTS, min(count, mb.CODE_SLOTS) + 1)


@inline
def on_writable_code(box, page, pfn, idx):
    """A writable entry for a frame that a CPU executes. Unicorn lets stores off the slow path, on which it sees that
    they hit code, once addr_code of the entry is empty: where this CPU executes it, addr_code is neither empty nor
    ever matches."""
    if ld8(get(box, mb.EXECUTED) + pfn) != 0:
        fast = get(box, mb.CPU) + lay.CPU_ENV + lay.TLB_FAST + 16 * idx
        entry = ld64(fast + 8) + (page >> 12 & ld64(fast) >> 6) * lay.TLB_ENTRY_SIZE
        st64(entry + lay.TLB_ENTRY_CODE, page | lay.TLB_INVALID_MASK)
    if get(box, mb.SHARED_CODE) != get(box, mb.EXECUTED):
        note_suspect(box, pfn)
