from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from shadowvm.mm.host import Host
from shadowvm.mm.mm_struct import MmStruct
from tests.mm.helpers import make_host


@pytest.fixture
def new_host() -> Iterator[Callable[..., Host]]:
    hosts = []

    def new(*args: int, **kwargs: int) -> Host:
        hosts.append(make_host(*args, **kwargs))
        return hosts[-1]

    yield new
    for host in hosts:
        host.close()


@pytest.fixture
def host(new_host: Callable[..., Host]) -> Host:
    return new_host()


@pytest.fixture
def mm(host: Host) -> MmStruct:
    return MmStruct(host, "vmm")
