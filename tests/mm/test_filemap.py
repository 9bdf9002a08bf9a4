from __future__ import annotations

import pytest

from shadowvm.errors import ModelBug
from shadowvm.mm.filemap import folio_lock, folio_trylock, folio_unlock


def test_waiters_get_the_lock_in_turn(host):
    page = host.alloc_page()
    order = []

    def worker(name):
        folio_lock(host, page)
        order.append(name)
        host.sched.preempt()
        order.append(name)
        folio_unlock(host, page)

    for name in "abc":
        host.sched.spawn(name, lambda name=name: worker(name))
    host.sched.run()
    assert "".join(order) == "aabbcc"
    assert not host.folio_waiters


def test_trylock_never_waits(host):
    page = host.alloc_page()
    assert folio_trylock(page)
    assert not folio_trylock(page)
    folio_unlock(host, page)
    assert folio_trylock(page)


def test_unlocking_an_unlocked_page_is_a_bug(host):
    with pytest.raises(ModelBug):
        folio_unlock(host, host.alloc_page())
