"""Two processes that train one student: the same weights on both, and those of one process with all the images."""

from __future__ import annotations

import importlib.util
import multiprocessing
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

WORKER = Path(__file__).with_name("ddp_worker.py")


@pytest.fixture(scope="module")
def worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ddp_worker", WORKER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ranks(worker: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    """What each process ended with, by policy. Forked, because importing everything anew takes ten times as long."""
    if not sys.platform.startswith("linux"):
        pytest.skip("processes are forked, which is safe on Linux only")
    folder = tmp_path_factory.mktemp("ddp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        fork = multiprocessing.get_context("fork")
        processes = [fork.Process(target=worker.main, args=(folder, rank)) for rank in range(worker.WORLD)]
        for process in processes:
            process.start()
    try:
        for process in processes:
            process.join(timeout=100)
            assert process.exitcode == 0, f"process ended with {process.exitcode}, see its output"
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(worker.WORLD)]


def weights(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in found.items() if not name.startswith("loss ")}


@pytest.mark.parametrize("policy", ["mean", "masked", "learned"])
def test_all_processes_end_with_the_same_weights(ranks, policy: str):
    first, second = (weights(found[policy]) for found in ranks)
    assert first.keys() == second.keys() and any(name.startswith("adapters.") for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(name.startswith("learned.") for name in first) == (policy == "learned")


def test_every_process_distils_its_own_images(ranks, worker: ModuleType):
    for step in range(1, worker.STEPS + 1):
        for term in worker.MEAN:
            losses = [found["mean"][f"loss {step} {term.label}"] for found in ranks]
            assert all(loss > 0 for loss in losses) and losses[0] != losses[1]


def test_two_processes_train_like_one_with_all_the_images(ranks, worker: ModuleType):
    with torch.random.fork_rng():
        alone = worker.run(worker.MEAN, 0, 1)
        start = worker.detector(0, 8).state_dict()
    moved = 0.0
    for name, value in weights(alone).items():
        torch.testing.assert_close(ranks[0]["mean"][name], value, atol=2e-6, rtol=1e-4)
        if name in start:
            moved = max(moved, float((value - start[name]).abs().max()))
    assert moved > 1e-4
    for term in worker.MEAN:
        halves = sum(found["mean"][f"loss 1 {term.label}"] for found in ranks) / worker.WORLD
        torch.testing.assert_close(halves, alone[f"loss 1 {term.label}"])
