"""Loads, stores and calls by address, for numba code. Everything is a signed 64-bit integer."""
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,type-arg"

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import njit as numba_njit
from numba import types
from numba.extending import intrinsic as numba_intrinsic

from .. import layout as lay
from .. import mailbox as mb

intrinsic: Any = numba_intrinsic
njit: Any = numba_njit
I64 = ir.IntType(64)
inline = njit(forceinline=True, no_cpython_wrapper=True)
"""Decorator of helpers that are compiled into each callback that uses them."""


def _load(width: int) -> Any:
    @intrinsic
    def load(tc, addr):
        def codegen(ctx, builder, sig, args):
            ty = ir.IntType(width)
            value = builder.load(builder.inttoptr(args[0], ty.as_pointer()))
            return value if width == 64 else builder.zext(value, I64)

        return types.int64(types.int64), codegen

    return load


def _store(width: int) -> Any:
    @intrinsic
    def store(tc, addr, value):
        def codegen(ctx, builder, sig, args):
            ty = ir.IntType(width)
            value = args[1] if width == 64 else builder.trunc(args[1], ty)
            builder.store(value, builder.inttoptr(args[0], ty.as_pointer()))
            return ctx.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return store


ld64, ld32, ld16, ld8 = _load(64), _load(32), _load(16), _load(8)
st64, st32, st8 = _store(64), _store(32), _store(8)
st16 = _store(16)


def _codegen_call(ctx, builder, sig, args):
    pointer = ir.FunctionType(I64, [I64] * (len(args) - 1)).as_pointer()
    return builder.call(builder.inttoptr(args[0], pointer), list(args[1:]))


@intrinsic
def call1(tc, fn, a):
    return types.int64(types.int64, types.int64), _codegen_call


@intrinsic
def call2(tc, fn, a, b):
    return types.int64(*[types.int64] * 3), _codegen_call


@intrinsic
def call3(tc, fn, a, b, c):
    return types.int64(*[types.int64] * 4), _codegen_call


@intrinsic
def call4(tc, fn, a, b, c, d):
    return types.int64(*[types.int64] * 5), _codegen_call


@intrinsic
def call5(tc, fn, a, b, c, d, e):
    return types.int64(*[types.int64] * 6), _codegen_call


@intrinsic
def call6(tc, fn, a, b, c, d, e, f):
    return types.int64(*[types.int64] * 7), _codegen_call


@intrinsic
def return_slot(tc):
    """Address of the stack slot that holds the calling function's return address."""

    def codegen(ctx, builder, sig, args):
        name = "llvm.addressofreturnaddress." + ("p0" if binding.llvm_version_info[0] >= 15 else "p0i8")
        fn = builder.module.globals.get(name)
        if fn is None:
            fn = ir.Function(builder.module, ir.FunctionType(ir.IntType(8).as_pointer(), []), name)
        return builder.ptrtoint(builder.call(fn, []), I64)

    return types.int64(), codegen


@inline
def get(box, word):
    """One word of the mailbox."""
    return ld64(box + 8 * word)


@inline
def put(box, word, value):
    st64(box + 8 * word, value)


@inline
def bump(box, word):
    """Add one to a word."""
    st64(box + 8 * word, ld64(box + 8 * word) + 1)


@inline
def signed32(x):
    """A 32-bit field as a signed number."""
    return (x ^ 0x8000_0000) - 0x8000_0000


@inline
def get_env(box):
    return get(box, mb.CPU) + lay.CPU_ENV
