"""Weights on disk and on the web: read, fitted into a detector all or nothing, and written under its home's names."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from detkds.detectors.base import Detector
from detkds.errors import WeightsError
from detkds.files import write_whole

_NESTS = ("state_dict", "model_state_dict", "model", "ema", "module")
_HASH = re.compile(r"-([0-9a-f]{8,64})\.")
_OLD_NAMES = (
    (re.compile(r"^(.*\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), lambda m: f"{m[1]}.0.{m[2]}"),
    (re.compile(r"^(.*rpn\.head\.conv)\.(weight|bias)$"), lambda m: f"{m[1]}.0.0.{m[2]}"),
    (re.compile(r"^(.*mask_head)\.mask_fcn(\d+)\.(weight|bias)$"), lambda m: f"{m[1]}.{int(m[2]) - 1}.0.{m[3]}"),
    (re.compile(r"^(.*_head\.conv)\.(\d+)\.(weight|bias)$"), lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}"),
)
"""Names of torchvision's first published checkpoints, and today's."""


def read_weights(source: str | Path) -> dict[str, Tensor]:
    """Read named tensors from a ``.safetensors``, ``.pt`` or ``.pth`` file or an http(s) address.

    Nothing in the file is executed. A download is kept in torch's hub folder; where its name ends in
    ``-<hash>.<suffix>``, as torchvision's do, the hash is checked.

    Raises:
        WeightsError: there is no such file, it cannot be fetched or read, or it holds something else.
    """
    text = str(source)
    path = _download(text) if urlparse(text).scheme in ("http", "https") else Path(source)
    if not path.is_file():
        raise WeightsError(f"weights: expected a file or an http(s) address, found nothing at {text}")
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"weights: {text} cannot be read as tensors: {reason}") from error
    for nest in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(f"weights: expected named tensors in {text}, got {_describe(content)}")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def load_weights(detector: Detector, source: str | Path, *, partial: bool = False) -> list[str]:
    """Load a detector's weights, under the names of its home library or of its own ``state_dict``.

    Nothing is changed unless everything fits. Counters of batch normalization may be missing or left over.

    Args:
        detector: changed in place.
        source: see :func:`read_weights`.
        partial: load what fits and leave the rest, for example the head of another set of classes.

    Returns:
        The detector's tensors that were left as they are; empty unless ``partial``.

    Raises:
        WeightsError: the source cannot be read, or (unless ``partial``) tensors are missing, left over or of another
            shape; with ``partial``, nothing at all fits.
    """
    read = read_weights(source)
    home, state = detector.home_state_dict(), detector.state_dict()
    at_home = sum(_todays_name(name, home) in home for name in read)
    own = state if sum(name in state for name in read) > at_home else home
    given = {_todays_name(name, own): tensor for name, tensor in read.items()}
    missing = [name for name in own if name not in given and not _is_counter(name)]
    left_over = [name for name in given if name not in own and not _is_counter(name)]
    wrong = [name for name in own if name in given and given[name].shape != own[name].shape]
    fitting = [name for name in own if name in given and name not in set(wrong)]
    if not partial and (missing or left_over or wrong):
        raise WeightsError(_faults(detector, str(source), missing, left_over, wrong, own, given))
    if not fitting:
        raise WeightsError(f"weights: none of the {len(given)} tensors of {source} belongs to {_title(detector)}")
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(given[name])
    return missing + wrong


def weights_content(detector: Detector) -> bytes:
    """The detector's weights as the content of a safetensors file, under its home's names.

    The class names are kept in the file's metadata.
    """
    tensors = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in detector.home_state_dict().items()
    }
    facts = {"detector": _title(detector), "class_names": json.dumps(detector.class_names), "format": "pt"}
    return safetensors.torch.save(tensors, facts)


def save_weights(detector: Detector, path: str | Path) -> None:
    """Write :func:`weights_content` to a file; an existing one is replaced at once.

    Raises:
        WeightsError: the file cannot be written; what stood there before is untouched.
    """
    path, content = Path(path), weights_content(detector)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: file.write(content))
    except OSError as error:
        raise WeightsError(f"weights: {path} cannot be written: {error}") from error


def stored_class_names(source: str | Path) -> tuple[str, ...] | None:
    """The class names in a file of :func:`save_weights`, in label order; None where it is another file or none."""
    path = Path(source)
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            names = json.loads((file.metadata() or {}).get("class_names", "null"))
    except (SafetensorError, OSError, ValueError):
        return None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _download(address: str) -> Path:
    name = Path(urlparse(address).path).name
    if not name:
        raise WeightsError(f"weights: expected an address that ends in a file name, got {address}")
    target = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not target.is_file():
        match = _HASH.search(name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(address, str(target), match[1] if match else None, progress=False)
        except (URLError, OSError, RuntimeError) as error:
            raise WeightsError(f"weights: {address} cannot be fetched: {error}") from error
    return target


def _todays_name(name: str, known: Mapping[str, Tensor]) -> str:
    if name not in known:
        for pattern, rename in _OLD_NAMES:
            match = pattern.match(name)
            if match and (newer := rename(match)) in known:
                return newer
    return name


def _faults(
    detector: Detector,
    source: str,
    missing: list[str],
    left_over: list[str],
    wrong: list[str],
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
) -> list[str]:
    title = _title(detector)
    faults = []
    classes = _classes_of(detector, wrong, own, given)
    if classes is not None:
        faults.append(
            f"weights: {source} is for {classes} classes, {title} has {len(detector.class_names)}; "
            f"give it that many class names, or load partially to leave the class layers out"
        )
    if missing:
        faults.append(f"weights: {source} lacks {len(missing)} tensors of {title}: {_shown(missing)}")
    if left_over:
        faults.append(f"weights: {source} holds {len(left_over)} tensors unknown to {title}: {_shown(left_over)}")
    faults += [
        f"weights: {name}: expected shape {tuple(own[name].shape)}, got {tuple(given[name].shape)} from {source}"
        for name in wrong
    ]
    return faults


def _classes_of(
    detector: Detector, wrong: list[str], own: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> int | None:
    """How many classes the file is for, where only first dimensions differ and all by the same ratio."""
    background = int(detector.info.layout.activation == "softmax")
    columns = len(detector.class_names) + background
    counts = set()
    for name in wrong:
        expected, got = own[name].shape, given[name].shape
        if not expected or expected[1:] != got[1:] or expected[0] % columns:
            return None
        counts.add(got[0] / (expected[0] // columns))
    if len(counts) != 1 or not (count := counts.pop()).is_integer():
        return None
    return int(count) - background


def _title(detector: Detector) -> str:
    return str(getattr(detector, "name", type(detector).__name__))


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _shown(names: list[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a mapping with the keys {_shown([str(key) for key in content], 5) or '(none)'}"
    return f"a {type(content).__name__}"
