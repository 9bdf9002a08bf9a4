from __future__ import annotations

from shadowvm.addr import PAGE_SIZE, Pfn
from shadowvm.phys import POISON_PAGE, ZERO_PAGE, Ram


def test_words_bytes_and_pages_are_the_same_memory() -> None:
    ram = Ram(4 * PAGE_SIZE)
    ram.q[2 * 512 + 1] = 0x1122334455667788
    assert bytes(ram.b[2 * PAGE_SIZE + 8 : 2 * PAGE_SIZE + 10]) == b"\x88\x77"
    assert ram.read_page(Pfn(2))[8:16] == bytes.fromhex("8877665544332211")


def test_frames_are_separate() -> None:
    ram = Ram(4 * PAGE_SIZE)
    ram.write_page(Pfn(1), POISON_PAGE)
    assert [ram.read_page(Pfn(n)) for n in range(4)] == [ZERO_PAGE, POISON_PAGE, ZERO_PAGE, ZERO_PAGE]
    ram.zero_page(Pfn(1))
    assert ram.read_page(Pfn(1)) == ZERO_PAGE
    assert ram.nr_frames == 4


def test_every_cpu_hears_that_code_changed() -> None:
    ram = Ram(PAGE_SIZE)
    heard: list[int] = []
    ram.code_caches += [heard.append, heard.append]
    ram.code_changed(Pfn(7))
    assert heard == [7, 7]
