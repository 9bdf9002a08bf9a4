from __future__ import annotations

from shadowvm.mm.host import Host
from shadowvm.mm.mm_struct import MmStruct, mmap
from shadowvm.mm.swap import SwapFile
from shadowvm.phys import Ram
from shadowvm.sync import Scheduler
from tests.mm.helpers import get_word, put_word, vpn_of


def test_a_host_starts_idle(host):
    assert host.zone.nr_free == host.zone.managed == host.ram.nr_frames - 2
    assert host.kswapd.daemon
    assert host.kswapd.waiting is not None
    assert not any(host.vmstat.as_dict()[name] for name in ("pgfault", "pgalloc_normal", "pswpout"))


def test_closing_removes_the_swap_file(tmp_path):
    path = tmp_path / "swap"
    host = Host(Ram(2 << 20), SwapFile(1 << 20, path), Scheduler())
    assert path.exists()
    host.close()
    assert not path.exists()


def test_two_runs_give_the_same_counters(new_host):
    def once():
        host = new_host()
        mm = MmStruct(host, "vmm")

        def main():
            start = mmap(mm, 4 << 20)
            for i in range(1800):
                put_word(mm, vpn_of(start, i * 37 % 900), i)
                host.sched.cond_resched()
                get_word(mm, vpn_of(start, i * 11 % 900))

        host.sched.spawn("vmm", main)
        host.sched.run()
        return host.vmstat.as_dict()

    assert once() == once()
