"""The memory that one engine's Python and native halves share: the mailbox and the arrays it points to."""

from __future__ import annotations

from ..phys import Ram
from . import layout as lay
from . import mailbox as mb
from . import nested_root, roots
from .arena import Arena
from .check import peek
from .library import Library
from .setup import NATIVE_CALLS, OWN_CALLS

MASK64 = (1 << 64) - 1


class Arrays:
    """`executed`: a byte for each frame from which code was fetched. `fill_epoch`, `write_epoch`: box[EPOCH] of the
    last TLB fill of a frame, and of the last that allows stores. `tb_cache`: translated blocks by return address."""

    __slots__ = ("box", "executed", "fill_epoch", "mailbox", "tb_cache", "write_epoch")

    def __init__(self, ram: Ram) -> None:
        frames = ram.nr_frames
        self.mailbox = Arena(8 * mb.NR_WORDS)
        self.box = self.mailbox.b.cast("Q")
        self.executed, self.fill_epoch, self.write_epoch = Arena(frames), Arena(4 * frames), Arena(4 * frames)
        self.tb_cache = Arena(16 * mb.TB_CACHE_SLOTS)
        self.empty_tb_cache()
        for word, value in (
            (mb.RAM_BASE, ram.base),
            (mb.NR_FRAMES, frames),
            (mb.EXECUTED, self.executed.address),
            (mb.SHARED_CODE, self.executed.address),
            (mb.FILL_EPOCH, self.fill_epoch.address),
            (mb.WRITE_EPOCH, self.write_epoch.address),
            (mb.TB_CACHE, self.tb_cache.address),
            (mb.FRAME_DISTANCE, MASK64 - 7),
            (mb.WINDOW_VA, mb.NO_WINDOW),
            (mb.WINDOW1_VA, mb.NO_WINDOW),
            *((mb.MMIO_WINDOWS + 2 * n, mb.NO_WINDOW) for n in range(mb.NR_MMIO_WINDOWS)),
            (mb.EPOCH, 1),
            (mb.BUDGET, mb.UNLIMITED),
            (mb.GRANTED, mb.UNLIMITED),
            (mb.SINGLE, MASK64),
            (mb.WATCH_ALONE, MASK64),
            (mb.WATCH_PAGE_BEFORE, 1),
            (mb.ROOT, roots.NO_ROOT),
            (mb.ROOT_LEVEL, 4),
            (mb.KEY_CR3, roots.NO_CR3),
            *roots.KEY_MASKS.items(),
            *nested_root.defaults().items(),
        ):
            self.box[word] = value

    def empty_tb_cache(self) -> None:
        """Forget all blocks. A return address of 0 must not look known."""
        self.tb_cache.b[:] = bytes(len(self.tb_cache.b))
        self.tb_cache.b[0] = 1

    def connect(self, lib: Library, uc: int, cpu: int, native: dict[str, int], *, counting: bool) -> None:
        """Tell native code about one Unicorn, the functions it may call, and its own."""
        for word, value in (
            (mb.CPU, cpu),
            (mb.UC, uc),
            (mb.TCG_CTX, peek(uc + lay.UC_TCG_CTX)),
            (mb.COUNTING, int(counting)),
            *((word, native[name]) for word, name in OWN_CALLS.items()),
            *((word, lib.address(name)) for word, name in NATIVE_CALLS.items()),
        ):
            self.box[word] = value
