"""What all tests share: one thread, no network, real data where it is at hand, and seeded generators."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("detkds", deadline=None, derandomize=True, database=None)  # the same examples everywhere
settings.load_profile("detkds")

REPOSITORY = Path(__file__).resolve().parents[1]


class NetworkRefusedError(RuntimeError):
    """A test tried to leave this machine."""


def _is_local(host: object) -> bool:
    if host is None or host in ("", b"", "localhost", b"localhost", socket.gethostname()):
        return True
    text = host.decode() if isinstance(host, bytes) else str(host)
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


@pytest.fixture(scope="session", autouse=True)
def _network_refused() -> Iterator[None]:
    """Refuse name look-ups and stream connections to other machines; local sockets still work."""
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def check(connection: socket.socket, address: Any) -> None:
        internet = connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM
        if internet and not _is_local(address[0]):
            raise NetworkRefusedError(f"tests run without network; refused a connection to {address[0]}:{address[1]}")

    def refusing_connect(self: socket.socket, address: Any) -> None:
        check(self, address)
        connect(self, address)

    def refusing_connect_ex(self: socket.socket, address: Any) -> int:
        check(self, address)
        return connect_ex(self, address)

    def refusing_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_local(host):
            raise NetworkRefusedError(f"tests run without network; refused to look up {host!r}")
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refusing_connect)
        patch.setattr(socket.socket, "connect_ex", refusing_connect_ex)
        patch.setattr(socket, "getaddrinfo", refusing_getaddrinfo)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked ``gpu`` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """``shared_data("bccd")`` is that data set's folder; the test is skipped where it is absent."""

    def find(name: str) -> Path:
        folder = REPOSITORY.parent / "shared" / "data" / name
        if not folder.is_dir():
            pytest.skip(f"real data set {name!r} is not beside the repository (shared/data/{name})")
        return folder

    return find


@pytest.fixture
def generator() -> torch.Generator:
    """A torch generator on the CPU, seeded alike for every test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    """A numpy generator, seeded alike for every test."""
    return np.random.default_rng(0)
