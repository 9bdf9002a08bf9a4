"""Threads of the host beside each other: two vCPUs and a VMM that takes their memory away."""

from __future__ import annotations

import pytest

from shadowvm.api import ExitReason, Host
from shadowvm.errors import ConfigError
from shadowvm.kvm.turns import Turns
from tests.api.vm import MIB, vcpu_with_code, vm_with_memory

COUNT = "mov cx, 5000\nagain: inc word [{at}]\nloop again\nhlt"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_vcpus_and_a_vmm_thread_share_the_host(seed: int) -> None:
    with Host(memory=4 * MIB, swap=4 * MIB, seed=seed) as host:
        vm = vm_with_memory(host, turns=Turns(200, 200))
        vcpus = [vcpu_with_code(vm, COUNT.format(at=0x8000 + 2 * n), 0x1000 * (n + 1)) for n in range(2)]
        reasons: list[ExitReason] = []
        paged_out = []

        def take_away() -> None:
            while len(reasons) < 2:
                paged_out.append(vm.madvise_pageout(vm.kvm.memslots.slots[0].userspace_addr, MIB))
                for _ in range(20):
                    host.sched.preempt()

        for vcpu in vcpus:
            host.start_thread(f"vcpu{vcpu.id}", lambda vcpu=vcpu: reasons.append(vcpu.run().exit_reason), vcpu.id)
        host.start_thread("taker", take_away)
        host.run()
        assert reasons == [ExitReason.HLT] * 2
        assert vm.read_memory(0x8000, 4) == b"\x88\x13" * 2
        assert sum(paged_out) > 0


def test_what_a_call_raises_comes_out_and_the_host_goes_on() -> None:
    with Host(memory=4 * MIB) as host:

        def refuse() -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            host.call(refuse)
        assert host.call(lambda: 7) == 7
        assert [task.name for task in host.sched.tasks] == ["kswapd0"]


def test_a_host_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError):
        Host(memory=1 << 60)
