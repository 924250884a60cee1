"""Named tensors on disk, one file per training batch: written whole or not at all, believed only where they verify."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from detkds.files import write_whole
from detkds.structures import Batch

_SAMPLES = 4096
"""Pixel values of each image that go into its batch's checksum."""


class BatchFiles:
    """Tensors of batches under ``folder/<fingerprint>``, at most ``limit`` bytes and half of the free disk.

    A file carries the fingerprint, the batch's image ids and pixel checksum, and a checksum of every tensor; what does
    not agree in all of them is not read. Files of other fingerprints are deleted, as nothing can use them again. A
    process that is killed leaves whole files behind, which the next one reads. Where writing fails, no more is
    written, and ``fault`` says why; reading goes on.

    Args:
        fingerprint: everything that the tensors depend on, beside the batch, as one name.
        note: told once of every reason for which a file was not read, and of the end of writing.
    """

    def __init__(self, folder: Path, fingerprint: str, limit: int, note: Callable[[str], None]) -> None:
        self.folder = folder / fingerprint
        self.fingerprint = fingerprint
        self.note = note
        self.limit = 0
        self.used = 0
        self.fault = ""
        self._told: set[str] = set()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for other in folder.iterdir():
                if other.is_dir() and other != self.folder:
                    shutil.rmtree(other, ignore_errors=True)
            self.used = sum(file.stat().st_size for file in self.folder.iterdir())
            self.limit = min(limit, self.used + shutil.disk_usage(self.folder).free // 2)
        except OSError as error:
            self._stop(error)

    def path(self, epoch: int, index: int) -> Path:
        """The file of an epoch's batch number ``index``."""
        return self.folder / f"{epoch:04d}-{index:06d}.safetensors"

    def read(self, epoch: int, index: int, batch: Batch, *, responses: bool) -> dict[str, Tensor] | None:
        """The tensors that were written for this batch, memory-mapped; None where there are none to believe.

        Args:
            responses: also those that are no features; None where they were not written.
        """
        path = self.path(epoch, index)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads(file.metadata()["about"])
                for name, expected in self._identity(batch).items():
                    if about[name] != expected:
                        return self._refuse(path, f"belongs to {_WRONG[name]}")
                if responses and not about["responses"]:
                    return None
                wanted = [name for name in about["sums"] if responses or name.startswith("features/")]
                tensors = {name: file.get_tensor(name) for name in wanted}
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return self._refuse(path, "cannot be read")
        if any(_checksum(tensor) != about["sums"][name] for name, tensor in tensors.items()):
            return self._refuse(path, "is damaged")
        return tensors

    def write(self, epoch: int, index: int, batch: Batch, tensors: Mapping[str, Tensor], *, responses: bool) -> bool:
        """Keep the tensors (on the CPU, contiguous) of a batch in place of what was kept; False where they are not.

        Args:
            responses: whether all is here that ``read`` with ``responses`` should find.
        """
        if self.fault:
            return False
        sums = {name: _checksum(tensor) for name, tensor in tensors.items()}
        about = {**self._identity(batch), "responses": responses, "sums": sums}
        data = safetensors.torch.save(dict(tensors), {"about": json.dumps(about)})
        path = self.path(epoch, index)
        try:
            replaced = path.stat().st_size if path.exists() else 0
            if self.used - replaced + len(data) > self.limit:
                return False
            write_whole(path, lambda file: file.write(data), sync=False)
        except OSError as error:
            self._stop(error)
            return False
        self.used += len(data) - replaced
        return True

    def remove(self, epoch: int, index: int) -> None:
        """Forget a batch."""
        path = self.path(epoch, index)
        with contextlib.suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            self.used -= size

    def _identity(self, batch: Batch) -> dict[str, object]:
        return {"fingerprint": self.fingerprint, "image_ids": list(batch.image_ids), "pixels": pixel_checksum(batch)}

    def _stop(self, error: OSError) -> None:
        self.fault = f"{self.folder} cannot be written: {error.strerror or error}"
        self.note(f"teacher: no more outputs are kept: {self.fault}; training goes on")

    def _refuse(self, path: Path, reason: str) -> None:
        if reason not in self._told:
            self._told.add(reason)
            self.note(f"teacher: {path} {reason}; such outputs are computed anew")


_WRONG = {"fingerprint": "another teacher or setting", "image_ids": "other images", "pixels": "another draw"}


def pixel_checksum(batch: Batch) -> str:
    """A checksum of a batch's image sizes and of some 4,096 values of each image, spread evenly: it tells draws."""
    step = max(1, batch.images[0].numel() // _SAMPLES) | 1  # odd, so that all columns come up
    samples = batch.images.flatten(1)[:, ::step].contiguous().cpu()
    digest = hashlib.blake2b(repr((tuple(batch.images.shape), batch.image_sizes.tolist())).encode(), digest_size=16)
    digest.update(samples.numpy().tobytes())
    return digest.hexdigest()


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data)
