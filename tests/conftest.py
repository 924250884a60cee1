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


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``train.json``, ``train``, ``val.json`` and ``val``: 16 and 8 images of 64 pixels, 2 classes."""
    from detkds.data.digits import make_digits

    folder = tmp_path_factory.mktemp("tiny") / "digits"
    make_digits(folder, train=16, val=8, size=64, num_classes=2)
    return folder


@pytest.fixture
def tiny_run(tiny_data: Path, tmp_path: Path) -> dict[str, Any]:
    """The configuration of a run that takes seconds, as plain data; its run folder is below ``tmp_path``."""
    return tiny_configuration(tiny_data, tmp_path)


@pytest.fixture(scope="module")
def tiny_module_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """``tiny_run`` for all tests of a module, in a folder of its own."""
    return tiny_configuration(tiny_data, tmp_path_factory.mktemp("module"))


def tiny_configuration(tiny_data: Path, folder: Path) -> dict[str, Any]:
    """Plain data; runs lie in ``folder/runs``."""
    head = {"neck_channels": 16, "head_convs": 1, "anchor_scales": [2.0], "anchor_ratios": [1.0]}
    train = {"epochs": 1, "draws": 8, "batch_size": 4, "optimizer": "adamw", "lr": 0.002, "warmup_steps": 1}
    return {
        "name": "tiny",
        "data": {
            "train": {"annotations": str(tiny_data / "train.json"), "images": str(tiny_data / "train")},
            "test": {"annotations": str(tiny_data / "val.json"), "images": str(tiny_data / "val")},
            "size": 64,
        },
        "teacher": {"detector": "retinanet", "backbone": "narrow8", "options": head, "train": train},
        "student": {"detector": "retinanet", "backbone": "narrow4", "options": head},
        "train": train,
        "proxy": {"validation": 0.5, "draws": 4, "population": 10, "calibration_batches": 1},
        "search": {"method": "divide", "single_budget": 1, "combination_budget": 1, "population": 2, "race": [1]},
        "final": {"seeds": [0, 1], "policies": ["pkd"]},
        "runs": str(folder / "runs"),
        "device": "cpu",
        "executor": "inline",  # workers take seconds to start
    }
