"""Files of tensors: what was written comes back bit for bit or not at all, whatever happens in between."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from detkds.files import remove_unfinished
from detkds.structures import Batch
from detkds.training import batch_files
from detkds.training.batch_files import BatchFiles, pixel_checksum

SOURCE = Path(__file__).resolve().parents[2] / "src"
LIMIT = 10**6


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return {
        "features/p4": torch.arange(12, dtype=torch.float16).view(1, 3, 2, 2),
        "features/p3": torch.full((2, 1), 1e9),
        "logits/p3": torch.tensor([0.1, -3.0], dtype=torch.bfloat16),
    }


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def files(tmp_path: Path, notes: list[str]) -> BatchFiles:
    return BatchFiles(tmp_path / "teacher", "abc", LIMIT, notes.append)


def equal(found: dict[str, Tensor] | None, expected: dict[str, Tensor]) -> bool:
    return (
        found is not None
        and list(found) == list(expected)
        and all(found[k].dtype == v.dtype and torch.equal(found[k], v) for k, v in expected.items())
    )


def test_what_was_written_comes_back_in_order_also_to_another_process(files, batch, tensors, tmp_path, notes):
    assert files.read(0, 0, batch(0), responses=True) is None
    assert files.write(0, 0, batch(0), tensors, responses=True)
    again = BatchFiles(tmp_path / "teacher", "abc", LIMIT, notes.append)
    for one in (files, again):
        assert equal(one.read(0, 0, batch(0), responses=True), tensors)
        assert one.used == one.path(0, 0).stat().st_size
    assert [file.name for file in files.folder.iterdir()] == ["0000-000000.safetensors"] and not notes


def test_responses_are_found_only_where_they_were_written(files, batch, tensors):
    features = {name: tensor for name, tensor in tensors.items() if name.startswith("features/")}
    files.write(0, 0, batch(0), features, responses=False)
    assert files.read(0, 0, batch(0), responses=True) is None
    assert equal(files.read(0, 0, batch(0), responses=False), features)
    files.write(0, 0, batch(0), tensors, responses=True)
    assert equal(files.read(0, 0, batch(0), responses=True), tensors)
    assert equal(files.read(0, 0, batch(0), responses=False), features)
    assert files.used == files.path(0, 0).stat().st_size


def test_another_draw_is_never_read(files, batch, tensors, notes):
    one = batch(0)
    files.write(0, 0, one, tensors, responses=True)
    flipped = replace(one, images=one.images.flip(3))
    shifted = replace(one, images=one.images.roll(1, 2))
    brighter = replace(one, images=one.images * 1.0001)
    smaller = replace(one, image_sizes=one.image_sizes - 1)
    others = replace(one, image_ids=(1, 0))
    for wrong in (flipped, shifted, brighter, smaller, others):
        assert files.read(0, 0, wrong, responses=True) is None
    assert len({pixel_checksum(b) for b in (one, flipped, shifted, brighter, smaller)}) == 5
    assert len(notes) == 2  # each reason once
    assert "belongs to another draw; such outputs are computed anew" in notes[0]
    assert "belongs to other images" in notes[1]
    assert equal(files.read(0, 0, one, responses=True), tensors)


def test_another_fingerprint_is_never_read_and_its_files_go(files, batch, tensors, tmp_path, notes):
    files.write(0, 0, batch(0), tensors, responses=True)
    stray = tmp_path / "stray.safetensors"
    shutil.copyfile(files.path(0, 0), stray)
    other = BatchFiles(tmp_path / "teacher", "xyz", LIMIT, notes.append)
    assert other.read(0, 0, batch(0), responses=True) is None
    assert not files.folder.exists() and other.used == 0
    shutil.move(stray, other.path(0, 0))
    assert other.read(0, 0, batch(0), responses=True) is None
    assert "belongs to another teacher or setting" in notes[0]


@pytest.mark.parametrize("place", [3, 40, -1, None])
def test_a_damaged_or_torn_file_is_refused_and_can_be_replaced(place, files, batch, tensors, notes):
    files.write(0, 0, batch(0), tensors, responses=True)
    path = files.path(0, 0)
    data = bytearray(path.read_bytes())
    if place is None:
        del data[-5:]
    else:
        data[place] ^= 0x41
    path.write_bytes(data)
    assert files.read(0, 0, batch(0), responses=True) is None
    assert len(notes) == 1 and ("cannot be read" in notes[0] or "is damaged" in notes[0])
    assert files.write(0, 0, batch(0), tensors, responses=True)
    assert equal(files.read(0, 0, batch(0), responses=True), tensors)


@pytest.mark.parametrize("content", [b"", b"not at all", b"\xff" * 64])
def test_a_file_of_something_else_is_refused(content, files, batch, notes):
    files.path(0, 0).write_bytes(content)
    assert files.read(0, 0, batch(0), responses=False) is None
    assert "cannot be read" in notes[0]


def test_the_limit_holds_and_what_is_there_stays(batch, tensors, tmp_path, notes):
    probe = BatchFiles(tmp_path / "probe", "abc", LIMIT, notes.append)
    probe.write(0, 0, batch(0), tensors, responses=True)
    files = BatchFiles(tmp_path / "teacher", "abc", int(2.5 * probe.used), notes.append)
    assert [files.write(0, index, batch(0), tensors, responses=True) for index in range(3)] == [True, True, False]
    assert files.write(0, 1, batch(0), tensors, responses=True)  # in place of itself
    assert files.used == sum(file.stat().st_size for file in files.folder.iterdir()) == 2 * probe.used
    files.remove(0, 1)
    assert files.write(0, 2, batch(0), tensors, responses=True)
    assert not notes and not files.fault


def test_half_of_the_free_disk_is_left(tmp_path, notes, monkeypatch):
    monkeypatch.setattr(batch_files.shutil, "disk_usage", lambda path: SimpleNamespace(free=600))
    assert BatchFiles(tmp_path / "teacher", "abc", LIMIT, notes.append).limit == 300


def test_a_full_disk_ends_writing_with_one_note(files, batch, tensors, notes, monkeypatch):
    files.write(0, 0, batch(0), tensors, responses=True)

    real = batch_files.write_whole

    def full(path: Path, write: Any, **options: Any) -> None:
        def part_of_it(file: Any) -> None:
            file.write(b"partial")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        real(path, part_of_it, **options)

    monkeypatch.setattr(batch_files, "write_whole", full)
    assert not files.write(0, 1, batch(1), tensors, responses=True)
    assert not files.write(0, 2, batch(2), tensors, responses=True)
    assert len(notes) == 1 and "cannot be written: No space left on device; training goes on" in notes[0]
    assert [file.name for file in files.folder.iterdir()] == ["0000-000000.safetensors"]
    assert equal(files.read(0, 0, batch(0), responses=True), tensors)


def test_a_folder_that_cannot_be_made_is_no_error(batch, tensors, tmp_path, notes):
    (tmp_path / "teacher").write_text("a file in its place")
    files = BatchFiles(tmp_path / "teacher", "abc", LIMIT, notes.append)
    assert not files.write(0, 0, batch(0), tensors, responses=True)
    assert files.read(0, 0, batch(0), responses=True) is None
    assert len(notes) == 1 and "cannot be written" in notes[0]


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from detkds.structures import Batch
from detkds.training import batch_files
from detkds.training.batch_files import BatchFiles

batch = Batch(torch.ones(1, 3, 8, 8), torch.tensor([[8, 8]]), (1,))
files = BatchFiles(Path(sys.argv[1]), "abc", 10**6, print)
files.write(0, 0, batch, {"features/p3": torch.ones(4)}, responses=True)

real = batch_files.write_whole

def torn(path, write, **options):
    def half(file):
        file.write(b"half of it")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    real(path, half, **options)

batch_files.write_whole = torn
files.write(0, 1, batch, {"features/p3": torch.ones(4)}, responses=True)
"""


def test_a_kill_while_writing_leaves_whole_files(tmp_path, notes):
    folder = tmp_path / "teacher"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder)],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list((folder / "abc").glob("*.part"))) == 1
    remove_unfinished(tmp_path)  # as whoever opens the run folder does
    files = BatchFiles(folder, "abc", LIMIT, notes.append)
    batch = Batch(torch.ones(1, 3, 8, 8), torch.tensor([[8, 8]]), (1,))
    assert equal(files.read(0, 0, batch, responses=True), {"features/p3": torch.ones(4)})
    assert files.read(0, 1, batch, responses=True) is None
    assert [file.name for file in files.folder.iterdir()] == ["0000-000000.safetensors"] and not notes
