"""vCPUs take turns: quanta of instructions, one virtual time for all, and what has to be done when they change.

One vCPU executes guest code at a time. Its turn ends when it has retired its quantum, or halts; where it waits for the
host (a lock, a page) the others go on, and it continues its turn later. Virtual time is what all vCPUs have retired
together, so that it never goes backwards between them.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from ..cpu.smp import sync_code

if TYPE_CHECKING:
    from .vcpu import Vcpu

QUANTUM = 1_000_000
"""Guest instructions between two looks at the limit, at signals and at other tasks."""
UNLIMITED = 1 << 62


class Turns:
    """How long turns are: from `shortest` to `longest` instructions, drawn with `seed` if these differ."""

    __slots__ = ("_random", "longest", "shortest")

    def __init__(self, shortest: int = UNLIMITED, longest: int = UNLIMITED, seed: int = 0) -> None:
        self.shortest, self.longest = shortest, longest
        self._random = Random(seed)

    def next(self) -> int:
        """Length of the turn that begins now."""
        if self.shortest == self.longest:
            return self.shortest
        return self._random.randint(self.shortest, self.longest)


def vcpu_load(vcpu: Vcpu) -> None:
    """kvm_arch_vcpu_load(): another vCPU has executed since this one did, or none yet.

    What the other wrote over code is forgotten here, and the time-stamp counter continues from the common time.
    """
    kvm = vcpu.kvm
    kvm.elsewhere = kvm.instructions - vcpu.engine.instructions
    previous, kvm.loaded = kvm.loaded, vcpu
    if previous is not None:
        sync_code(previous.engine, [other.engine for other in kvm.vcpus if other is not previous])
    grant_quantum(vcpu)


def grant_quantum(vcpu: Vcpu) -> bool:
    """Budget for the next stretch: to the end of the turn, the limit or the next timer. False: the limit is reached."""
    engine = vcpu.engine
    if not engine.counting:
        return True
    _charge(vcpu)
    left = min(vcpu.turn_left, QUANTUM)
    if vcpu.limit:
        left = min(left, vcpu.limit - vcpu.kvm.instructions)
    reached = vcpu.limit != 0 and left <= 0
    if vcpu.irq is not None:
        now = vcpu.irq.clock.now()
        engine.set_time_base(now - engine.instructions)
        deadline = vcpu.irq.clock.next_deadline()
        if deadline is not None:
            left = min(left, max(deadline - now, 1))
    vcpu.granted, vcpu.granted_at = 0 if reached else max(left, 0), engine.instructions
    engine.set_budget(vcpu.granted)
    return not reached


def end_turn(vcpu: Vcpu) -> None:
    """If the turn is used up, the others go first."""
    if not vcpu.engine.counting:
        return
    _charge(vcpu)
    if vcpu.turn_left <= 0:
        vcpu.turn_left = vcpu.kvm.turns.next()
        vcpu.sched.preempt()


def _charge(vcpu: Vcpu) -> None:
    """Take what was used of the budget from the turn. Exceptions that retire no instruction use it, too."""
    left = vcpu.engine.budget
    vcpu.turn_left -= vcpu.granted - left
    vcpu.granted = left
