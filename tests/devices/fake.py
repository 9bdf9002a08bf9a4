"""A clock that tests move by hand."""

from __future__ import annotations

from shadowvm.devices.clock import VirtualClock


class FakeClock(VirtualClock):
    """`advance` runs the timers on the way, each at its deadline, as the machine does."""

    def __init__(self):
        super().__init__(lambda: self.retired)
        self.retired = 0

    def advance(self, ns):
        self.advance_to(self.now() + ns)

    def advance_to(self, when):
        while (deadline := self.next_deadline()) is not None and deadline <= when:
            self.retired += max(0, deadline - self.now())
            self.run_due()
        self.retired += when - self.now()

    def jump(self, ns):
        """A quantum that overran: timers fire only at its end."""
        self.retired += ns
        self.run_due()
