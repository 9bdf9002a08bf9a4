"""Laws of dirty logging know whose log it is: memory of two slots is written through the one without the other's."""

from __future__ import annotations

from functools import partial

import pytest

from shadowvm.lab.mutate import host
from shadowvm.lab.mutate.guest import PAGE, Code
from shadowvm.lab.mutate.scenario import Scenario, run_scenario


@pytest.mark.parametrize("mmu", ["shadow", "tdp"])
def test_a_store_through_another_slot_is_no_affair_of_the_log(mmu: str) -> None:
    code = Code().store(PAGE, 1).store(host.EXTRA, 2).host(0).load(PAGE).store(host.EXTRA, 3).host(1)
    code.store(PAGE, 4).store(host.EXTRA, 5).host(1).store(host.EXTRA, 6).host(1).expect(PAGE, 6).exit()
    actions = (partial(host.log_dirty, gpa=PAGE), partial(host.harvest, gpa=PAGE))
    prepare = partial(host.add_alias, gpa=PAGE)
    finding = run_scenario(Scenario(code, config={"mmu": mmu}, prepare=prepare, actions=actions))
    assert finding.law is None, finding.text
