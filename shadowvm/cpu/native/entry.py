"""The callbacks with the C signatures that Unicorn calls. `CALLBACKS` is what build.py compiles."""
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

from numba import cfunc, types

from .. import layout as lay
from .blocks import on_block, on_block_slow, on_leave, on_rdtsc
from .coherence import on_writable_code
from .debug import on_watched_access
from .interrupt import on_exception, on_interrupt, on_invalid
from .memory import get_env, ld64, st64
from .nested import nested_walk
from .ports import on_in, on_out
from .syscall import on_syscall, on_sysenter
from .translate import read_code
from .walker import on_fill, other_root, refuse, walk
from .watch import on_filled, on_mark_all, on_marked, on_unmark

i64, u32, i32, boolean, void = types.int64, types.uint32, types.int32, types.boolean, types.void


def callback(*signature):
    return cfunc(signature[0](*signature[1:]), forceinline=True)


@callback(boolean, i64, i64, i32, i32, i32, boolean, i64)
def fill(cpu, va, size, access, idx, probe, retaddr):
    return on_fill(cpu, va, i64(size), i64(access), i64(idx), probe, retaddr)


@callback(boolean, i64, i32)
def interrupt(cpu, request):
    return on_interrupt(cpu)


@callback(void, i64, u32, i64)
def exception(uc, vector, box):
    on_exception(box, i64(vector))


@callback(boolean, i64, i64)
def invalid(uc, box):
    on_invalid(box)
    return True


@callback(void, i64, i64)
def syscall(uc, box):
    on_syscall(box)


@callback(void, i64, i64)
def sysenter(uc, box):
    on_sysenter(box)


@callback(void, i64, i64, u32, i64)
def block(uc, pc, size, box):
    on_block(box, pc)


@callback(void, i64, i64, i64)
def block_slow(box, slot, pc):
    on_block_slow(box, slot, pc)


@callback(void, i64, i64)
def leave_run(box, code):
    on_leave(box, code)


@callback(i64, i64)
def find_root(box):
    return i64(other_root(box))


@callback(void, i64, i64, i64, i64, i64, i64)
def refuse_walk(box, va, size, how, retaddr, code):
    refuse(box, va, size, how >> 2, how & 3, retaddr, code)


@callback(i64, i64, i64)
def code_at(box, va):
    return read_code(box, va)


@callback(i64, i64, i64, i64, i64)
def walk_both(box, va, access, idx):
    return nested_walk(box, va, access, idx)


@callback(void, i64, i64, i64, i64)
def writable_code(box, page, pfn, idx):
    on_writable_code(box, page, pfn, idx)


@callback(i64, i64, i64, i64, i64, i64)
def watched_access(box, va, size, access, retaddr):
    return on_watched_access(box, va, size, access, retaddr)


@callback(i64, i64, i64, i64, i64, i64)
def watch_marked(box, va, size, how, retaddr):
    return i64(on_marked(box, va, size, how, retaddr))


@callback(void, i64, i64, i64, i64, i64, i64)
def watch_filled(box, va, size, how, retaddr, hpa):
    on_filled(box, va, size, how, retaddr, hpa)


@callback(void, i64, i64, i64)
def watch_unmark(box, page, idx):
    on_unmark(box, page, idx)


@callback(void, i64)
def watch_mark_all(box):
    on_mark_all(box)


@callback(i32, i64, i64)
def rdtsc(uc, box):
    on_rdtsc(box)
    return i32(1)


@callback(i32, i64, i64)
def rdtscp(uc, box):
    on_rdtsc(box)
    env = get_env(box)
    st64(env + lay.ENV_REGS + 8 * lay.RCX, ld64(env + lay.ENV_TSC_AUX) & 0xFFFF_FFFF)
    return i32(1)


@callback(u32, i64, u32, i32, i64)
def port_in(uc, port, size, box):
    return u32(on_in(box, i64(port), i64(size)))


@callback(void, i64, u32, i32, u32, i64)
def port_out(uc, port, size, value, box):
    on_out(box, i64(port), i64(size), i64(value))


@callback(i64, i64, i64, i64, i64)
def walk_once(box, va, access, idx):
    """Only for tests: one walk, as `fill` does it."""
    return walk(box, va, access, idx)


CALLBACKS = {
    f.__name__: f
    for f in (
        fill,
        interrupt,
        exception,
        invalid,
        syscall,
        sysenter,
        block,
        block_slow,
        leave_run,
        find_root,
        refuse_walk,
        walk_both,
        code_at,
        writable_code,
        watched_access,
        watch_marked,
        watch_filled,
        watch_unmark,
        watch_mark_all,
        rdtsc,
        rdtscp,
        port_in,
        port_out,
        walk_once,
    )
}
