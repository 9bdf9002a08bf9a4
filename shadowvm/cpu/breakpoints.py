"""A debugger's breakpoints on instructions: an exit before the instruction, which no guest can see.

Blocks that hold a breakpoint are kept out of the native cache of blocks, so that they pass through the slow hook, which
divides them there (native/blocks.py); all other code runs as fast as without.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from ..errors import ModelBug
from . import mailbox as mb

_NONE = (1 << 64) - 1


class Breakpoints:
    """Those of one engine, at linear addresses (CS.base + RIP)."""

    __slots__ = ("_box", "_forget_blocks")

    def __init__(self, box: memoryview[int], forget_blocks: Callable[[], None]) -> None:
        self._box, self._forget_blocks = box, forget_blocks
        box[mb.BREAK_PASSED] = _NONE

    def set(self, addresses: Collection[int]) -> None:
        """Exit with DEBUG at these from now on; only of an engine that counts. ModelBug: too many."""
        if len(addresses) > mb.MAX_BREAKS:
            raise ModelBug(f"{len(addresses)} breakpoints are more than {mb.MAX_BREAKS}")
        box = self._box
        if not addresses and not box[mb.NR_BREAKS]:
            return
        for word, address in enumerate(sorted(addresses), mb.BREAKS):
            box[word] = address
        box[mb.NR_BREAKS], box[mb.BREAK_PASSED] = len(addresses), _NONE
        self._forget_blocks()

    def let_pass(self, address: int) -> None:
        """The next execution of the instruction there is no exit."""
        self._box[mb.BREAK_PASSED] = address
