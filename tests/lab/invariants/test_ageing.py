"""Laws of ageing know where it ends."""

from __future__ import annotations

from functools import partial

from shadowvm.addr import PAGE_SIZE
from shadowvm.lab.mutate import host
from shadowvm.lab.mutate.guest import PAGE, Code
from shadowvm.lab.mutate.scenario import Scenario, run_scenario
from shadowvm.machine import Machine


def test_a_fast_fault_of_a_task_that_has_aged_the_page_may_give_w_back() -> None:
    def age(machine: Machine) -> None:
        hva = host.hva_of(machine, PAGE)
        machine.kvm.notifier.clear_flush_young(machine.mm, hva, hva + PAGE_SIZE)

    code = Code().store(PAGE, 1).host(0).host(1).store(PAGE, 2).expect(PAGE, 2).exit()
    actions = (partial(host.log_dirty, gpa=PAGE), age)
    finding = run_scenario(Scenario(code, config={"mmu": "tdp"}, actions=actions))
    assert finding.law is None, finding.text
