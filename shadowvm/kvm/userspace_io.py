"""Ports and MMIO that user space answers: KVM_EXIT_IO and KVM_EXIT_MMIO (arch/x86/kvm/x86.c, emulator_pio_in_out).

A store, or OUT, has retired when run() returns. IN has retired too, with a placeholder in AL, AX or EAX that the next
run() replaces by the answer (complete_fast_pio_in); INS gets all ones. A load from where no memory is has not retired:
the next run() executes the instruction again, with the answer at hand; if it turns out only then that the instruction
loads, as one that also stores does, the CPU is put back to its beginning. A VM with devices has no such object.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from ..addr import Gpa
from ..cpu.layout import RAX
from .exit import ExitReason, KvmIo, KvmMmio, KvmRun

if TYPE_CHECKING:
    from .vcpu import Vcpu


class UserspaceIo:
    """What one vCPU has to ask of user space. exits: not yet reported; asked: the question reported last."""

    __slots__ = ("_answers", "_asked", "_unanswered", "_vcpu", "exits")

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        self.exits: deque[KvmRun] = deque()
        self._asked: KvmIo | KvmMmio | None = None
        self._answers: dict[tuple[Gpa, int], int] = {}
        self._unanswered: tuple[Gpa, int] | None = None
        vcpu.userspace_io = self
        vcpu.engine.on_in(self._port_in)
        vcpu.engine.on_out(self._port_out)
        vcpu.engine.on_mmio(self._mmio_read, self._mmio_write)

    def complete(self) -> None:
        """What user space has answered takes effect (complete_userspace_io)."""
        asked, self._asked = self._asked, None
        if isinstance(asked, KvmIo):
            engine, mask = self._vcpu.engine, (1 << 8 * asked.size) - 1
            kept = 0 if asked.size == 4 else engine.get_reg(RAX) & ~mask
            engine.set_reg(RAX, kept | asked.data & mask)
        elif asked is not None:
            self._answers[asked.phys_addr, asked.len] = asked.data & (1 << 8 * asked.len) - 1

    def next_exit(self) -> KvmRun | None:
        """The oldest exit that was not reported."""
        if not self.exits:
            return None
        run = self.exits.popleft()
        question = run.io or run.mmio
        if question is not None and not question.is_write:
            self._asked = question
        return run

    def ask(self, gpa: Gpa, size: int) -> bool:
        """Before a load is emulated: whether user space has to be asked first; its exit is queued then."""
        if (gpa, size) in self._answers:
            return False
        self.exits.append(KvmRun(ExitReason.MMIO, mmio=KvmMmio(gpa, size, is_write=False, data=(1 << 8 * size) - 1)))
        return True

    def take_back(self) -> bool:
        """After an emulation: whether it has read what user space has not answered yet, and must be undone."""
        unanswered, self._unanswered = self._unanswered, None
        if unanswered is None:
            self._answers.clear()
            return False
        self.exits.clear()
        self.ask(*unanswered)
        return True

    def _port_in(self, port: int, size: int) -> int:
        mask = (1 << 8 * size) - 1
        self.exits.append(KvmRun(ExitReason.IO, io=KvmIo(port, size, is_write=False, data=mask)))
        self._vcpu.engine.request_stop()
        return mask

    def _port_out(self, port: int, size: int, value: int) -> None:
        self.exits.append(KvmRun(ExitReason.IO, io=KvmIo(port, size, is_write=True, data=value)))
        self._vcpu.engine.request_stop()

    def _mmio_read(self, gpa: Gpa, size: int) -> int:
        answer = self._answers.get((gpa, size))
        if answer is None:
            self._unanswered = self._unanswered or (gpa, size)
            return 0
        return answer

    def _mmio_write(self, gpa: Gpa, size: int, value: int) -> None:
        self.exits.append(KvmRun(ExitReason.MMIO, mmio=KvmMmio(gpa, size, is_write=True, data=value)))
