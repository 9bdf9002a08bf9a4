from __future__ import annotations

import errno
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from shadowvm.addr import PAGE_SIZE
from shadowvm.errors import ConfigError, ModelBug, SwapIOError
from shadowvm.events import attached, mm_vmscan_write_folio, swap_readpage, swap_writepage
from shadowvm.mm.mm_struct import MmStruct, exit_mmap, madvise_pageout, mmap
from shadowvm.mm.swap import SWAP_HAS_CACHE, SWAP_MAP_MAX, SWAPFILE_CLUSTER, SwapFile
from tests.mm.helpers import audit, get_word, put_word, vpn_of

MIB = 1 << 20


@pytest.fixture
def pages(mm):
    """40 pages with contents, in a row."""
    start = mmap(mm, 40 << 12)
    for i in range(40):
        put_word(mm, vpn_of(start, i), i + 1)
    return start


def test_a_directory_gets_an_unnamed_file(tmp_path):
    swap = SwapFile(MIB, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert os.fstat(swap.fd).st_size == MIB
    swap.close()
    assert swap.fd == -1


def test_a_new_file_is_removed_and_an_empty_one_is_emptied(tmp_path):
    new, empty = tmp_path / "new", tmp_path / "empty"
    empty.touch()
    for path in (new, empty):
        swap = SwapFile(MIB, path)
        assert path.stat().st_size == MIB
        swap.close()
    assert list(tmp_path.iterdir()) == [empty]
    assert empty.stat().st_size == 0


def test_a_file_with_contents_is_never_touched(tmp_path):
    precious = tmp_path / "data"
    precious.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="holds data"):
        SwapFile(MIB, precious)
    assert precious.read_bytes() == b"mine"


@pytest.mark.parametrize("place", ["missing/file", "pipe", "file/below"])
def test_a_bad_place_is_named_in_one_line(tmp_path, place):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=str(tmp_path / place)) as caught:
        SwapFile(MIB, tmp_path / place)
    assert "\n" not in str(caught.value)


def test_tmpdir_is_used_and_must_work(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    swap = SwapFile(MIB)
    assert str(tmp_path) in swap.name
    swap.close()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="TMPDIR"):
        SwapFile(MIB)


def test_no_temporary_directory_at_all(monkeypatch):
    def none():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.gettempdir", none)
    with pytest.raises(ConfigError, match="swap file: No usable"):
        SwapFile(MIB)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG])
def test_too_little_space_is_found_at_the_start(tmp_path, monkeypatch, code):
    def refuse(_fd, _start, _size):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(ConfigError, match="no space for 1 MiB"):
        SwapFile(MIB, tmp_path / "swap")
    assert list(tmp_path.iterdir()) == []


def test_without_fallocate_free_space_is_asked_for(tmp_path, monkeypatch):
    def unsupported(_fd, _start, _size):
        raise OSError(errno.EOPNOTSUPP, "unsupported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    swap = SwapFile(MIB, tmp_path)
    assert os.fstat(swap.fd).st_size == MIB
    swap.close()
    monkeypatch.setattr(os, "fstatvfs", lambda _fd: SimpleNamespace(f_bavail=MIB // 512 - 1, f_frsize=512))
    with pytest.raises(ConfigError, match="no space"):
        SwapFile(MIB, tmp_path)


@pytest.mark.parametrize("size", [-4096, 100])
def test_nonsense_sizes_are_refused(size):
    with pytest.raises(ConfigError, match="swap size"):
        SwapFile(size)


def test_no_swap_at_all():
    swap = SwapFile(0)
    assert swap.alloc_slot() is None
    assert swap.fd == -1
    swap.close()


def test_slots_come_in_a_row_and_each_once():
    swap = SwapFile(1000 * PAGE_SIZE)
    slots = [swap.alloc_slot() for _ in range(1000)]
    assert slots == list(range(1000))
    assert swap.alloc_slot() is None
    assert swap.nr_free == 0
    swap.close()


def test_freed_slots_come_back_clusters_first():
    swap = SwapFile(4 * SWAPFILE_CLUSTER * PAGE_SIZE)
    for slot in [swap.alloc_slot() for _ in range(swap.nr_slots)]:
        swap.swap_map[slot] = 1
    scattered = [7, 9, SWAPFILE_CLUSTER + 3]
    cluster = list(range(2 * SWAPFILE_CLUSTER, 3 * SWAPFILE_CLUSTER))
    for slot in scattered + cluster:
        swap.put(slot)
    again = [swap.alloc_slot() for _ in range(len(scattered) + len(cluster))]
    assert again == cluster + scattered
    assert swap.alloc_slot() is None
    swap.close()


def test_a_slot_lives_as_long_as_anybody_needs_it():
    swap = SwapFile(MIB)
    slot = swap.alloc_slot()
    assert swap.swap_map[slot] == SWAP_HAS_CACHE
    swap.duplicate(slot)
    swap.duplicate(slot)
    assert swap.count(slot) == 2
    swap.put(slot)
    swap.put(slot)
    assert swap.nr_free == swap.nr_slots - 1
    with pytest.raises(ModelBug):
        swap.put(slot)
    with pytest.raises(ModelBug):
        swap.duplicate(slot + 1)
    swap.swap_map[slot] |= SWAP_MAP_MAX
    with pytest.raises(ModelBug):
        swap.duplicate(slot)
    swap.close()


def test_a_batch_is_one_write_and_the_file_really_holds_it(mm, pages, monkeypatch):
    calls = []
    real = os.pwritev

    def spy(fd, buffers, offset):
        calls.append((offset >> 12, len(buffers)))
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", spy)
    assert madvise_pageout(mm, pages, 32 << 12) == 32
    assert calls == [(0, 32)]
    assert mm.host.vmstat.pswpout == mm.host.vmstat.nr_vmscan_write == 32
    word = os.pread(mm.host.swap.fd, 8, (5 << 12) + 40)
    assert int.from_bytes(word, "little") == 6


def test_pages_of_zeros_need_no_io(mm, monkeypatch):
    start = mmap(mm, 4 << 12)
    for i in range(4):
        put_word(mm, vpn_of(start, i), 0)
    monkeypatch.setattr(os, "pwritev", None)
    monkeypatch.setattr(os, "preadv", None)
    assert madvise_pageout(mm, start, 4 << 12) == 4
    assert mm.host.vmstat.swpout_zero == 4
    assert [get_word(mm, vpn_of(start, i)) for i in range(4)] == [0] * 4
    assert mm.host.vmstat.swpin_zero == 4
    assert mm.host.vmstat.pswpin == mm.host.vmstat.pswpout == 0


def test_a_page_with_zero_ends_is_not_taken_for_one_of_zeros(mm):
    start = mmap(mm, 4096)
    put_word(mm, vpn_of(start), 9)
    madvise_pageout(mm, start, 4096)
    assert mm.host.vmstat.swpout_zero == 0
    assert get_word(mm, vpn_of(start)) == 9


def test_a_slot_of_zeros_that_gets_contents_is_written(mm):
    start = mmap(mm, 4096)
    vpn = vpn_of(start)
    put_word(mm, vpn, 0)
    madvise_pageout(mm, start, 4096)
    assert get_word(mm, vpn) == 0
    put_word(mm, vpn, 3)
    madvise_pageout(mm, start, 4096)
    assert get_word(mm, vpn) == 3


def test_listeners_see_contents_before_the_write_and_after_the_read(mm, pages):
    sums = {}

    def sink(tracepoint, args):
        if tracepoint is mm_vmscan_write_folio:
            assert args[1] in sums
            return
        slot, pfn = args
        content = mm.host.ram.read_page(pfn)
        if tracepoint is swap_writepage:
            sums[slot] = content
        else:
            assert sums[slot] == content

    with attached(sink, (swap_writepage, swap_readpage, mm_vmscan_write_folio)):
        madvise_pageout(mm, pages, 40 << 12)
        assert len(sums) == 40
        assert get_word(mm, vpn_of(pages, 39)) == 40


def fail_with(code):
    def fail(_fd, _buffers, _offset):
        raise OSError(code, os.strerror(code))

    return fail


def test_a_failed_write_is_reported_and_loses_nothing(mm, pages, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", fail_with(errno.ENOSPC))
        with pytest.raises(SwapIOError, match=r"write of slot 0: \[Errno 28\] No space left on device"):
            madvise_pageout(mm, pages, 40 << 12)
    audit(mm.host)
    assert [get_word(mm, vpn_of(pages, i)) for i in range(40)] == list(range(1, 41))
    exit_mmap(mm)
    assert mm.host.zone.nr_free == mm.host.zone.managed


def test_a_short_write_names_the_slot_that_is_missing(mm, pages, monkeypatch):
    monkeypatch.setattr(os, "pwritev", lambda _fd, _buffers, _offset: 5 << 12)
    with pytest.raises(SwapIOError, match="write of slot 5: short by 110592 bytes"):
        madvise_pageout(mm, pages, 40 << 12)
    audit(mm.host)


@pytest.mark.parametrize("how", ["error", "truncated"])
def test_a_failed_read_is_reported_and_loses_nothing(mm, pages, monkeypatch, how):
    host = mm.host
    madvise_pageout(mm, pages, 40 << 12)
    with monkeypatch.context() as patch:
        if how == "error":
            patch.setattr(os, "preadv", fail_with(errno.EIO))
        else:
            os.ftruncate(host.swap.fd, (3 << 12) + 100)
        with pytest.raises(SwapIOError, match="read of slot 3: " + ("short" if how == "truncated" else r"\[Errno 5\]")):
            get_word(mm, vpn_of(pages, 3))
    assert not mm.mmap_lock.readers
    audit(host)
    exit_mmap(mm)
    assert host.zone.nr_free == host.zone.managed
    assert host.swap.nr_free == host.swap.nr_slots


def test_a_full_file_system_is_an_error_not_a_signal(tmp_path):
    """RLIMIT_FSIZE stands for the disk that fills up later: the kernel cuts the write short."""
    script = f"""
import resource
from shadowvm.errors import SwapIOError
from shadowvm.mm.mm_struct import MmStruct, madvise_pageout, mmap
from shadowvm.mm.swap import SwapFile
from shadowvm.mm.host import Host
from shadowvm.phys import Ram
from shadowvm.sync import Scheduler
from tests.mm.helpers import put_word, vpn_of
host = Host(Ram(2 << 20), SwapFile(1 << 20, {str(tmp_path)!r}), Scheduler())
mm = MmStruct(host, "vmm")
start = mmap(mm, 32 << 12)
for i in range(32):
    put_word(mm, vpn_of(start, i), 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (10 << 12, resource.RLIM_INFINITY))
try:
    madvise_pageout(mm, start, 32 << 12)
except SwapIOError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "write of slot 10: short" in run.stdout


def test_a_full_swap_ends_in_out_of_memory_not_in_lost_data(new_host):
    from shadowvm.mm.fault import VmFault
    from shadowvm.mm.gup import get_user_page
    from shadowvm.mm.page_alloc import put_page

    host = new_host(swap=100 << 12)
    mm = MmStruct(host, "vmm")
    start = mmap(mm, 4 << 20)
    written = 0
    while not isinstance(page := get_user_page(mm, vpn_of(start, written), True), VmFault):
        mm.q[page.pfn << 9 | 5] = written + 1
        put_page(host, page)
        written += 1
    assert page is VmFault.OOM
    assert host.swap.nr_free == 0
    assert written >= host.zone.managed - host.zone.high + 100 - 8
    audit(host)
    exit_mmap(mm)
    assert host.zone.nr_free == host.zone.managed
    assert host.swap.nr_free == 100


def test_slot_counts_that_disagree_with_the_map_are_a_bug_not_a_hang():
    swap = SwapFile(1 << 20)
    swap.swap_map[:] = b"\1" * len(swap.swap_map)
    with pytest.raises(ModelBug, match="256 swap slots are free by count"):
        swap.alloc_slot()
    swap.close()
