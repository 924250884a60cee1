"""Weights fitted into a detector all or nothing, and written under its home's names."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from detkds.detectors.base import Detector
from detkds.detectors.checkpoints import read_weights, without_prefix
from detkds.detectors.origins import origin_of
from detkds.errors import WeightsError
from detkds.files import write_whole

_OLD_NAMES = (
    (re.compile(r"^(.*\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), lambda m: f"{m[1]}.0.{m[2]}"),
    (re.compile(r"^(.*rpn\.head\.conv)\.(weight|bias)$"), lambda m: f"{m[1]}.0.0.{m[2]}"),
    (re.compile(r"^(.*mask_head)\.mask_fcn(\d+)\.(weight|bias)$"), lambda m: f"{m[1]}.{int(m[2]) - 1}.0.{m[3]}"),
    (re.compile(r"^(.*_head\.conv)\.(\d+)\.(weight|bias)$"), lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}"),
)
"""Names of torchvision's first published checkpoints, and today's."""


def load_weights(detector: Detector, source: str | Path, *, partial: bool = False, trust: bool = False) -> list[str]:
    """Load a detector's weights, under the names of its home library or of its own ``state_dict``.

    What wrappers put before all names (``module.``, ``_orig_mod.``, ``detector.``) is taken off. Nothing is changed
    unless everything fits. Counters of batch normalization and of averages may be missing or left over.

    Args:
        detector: changed in place.
        source: see :func:`read_weights`; trust: likewise.
        partial: load what fits and leave the rest, for example the head of another set of classes, with a warning that
            names what was left.

    Returns:
        The detector's tensors that were left as they are; empty unless ``partial``.

    Raises:
        WeightsError: the source cannot be read, or (unless ``partial``) tensors are missing, left over or of another
            shape; with ``partial``, nothing at all fits.
    """
    read = read_weights(source, trust=trust)
    own, given = _matched(detector, read, str(source))
    missing = [name for name in own if name not in given and not _is_counter(name)]
    left_over = [name for name in given if name not in own and not _is_counter(name)]
    wrong = [name for name in own if name in given and given[name].shape != own[name].shape]
    fitting = [name for name in own if name in given and name not in set(wrong)]
    if not fitting:
        origin = origin_of(read)
        raise WeightsError(
            f"weights: none of the {len(given)} tensors of {source} belongs to {_title(detector)}"
            + (f"; {origin}" if origin else "")
        )
    if not partial and (missing or left_over or wrong):
        raise WeightsError(_faults(detector, str(source), missing, left_over, wrong, own, given))
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(given[name])
    left = missing + wrong
    if left:
        warnings.warn(
            f"weights: {len(left)} of {len(own)} tensors of {_title(detector)} keep their start, as {source} has none "
            f"that fit: {_shown(left)}",
            RuntimeWarning,
            stacklevel=2,
        )
    return left


def _matched(
    detector: Detector, read: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The detector's tensors under the names that the file uses most of, and the file's under these names."""
    best: tuple[int, dict[str, Tensor], dict[str, Tensor]] | None = None
    for own in (detector.home_state_dict(), detector.state_dict()):
        bare = without_prefix(read, own, source, _todays_name)
        given = {_todays_name(name, own): tensor for name, tensor in bare.items()}
        count = sum(name in own for name in given)
        if best is None or count > best[0]:
            best = count, own, given
    assert best is not None
    return best[1:]


def weights_content(detector: Detector) -> bytes:
    """The detector's weights as the content of a safetensors file, under its home's names.

    The class names are kept in the file's metadata. Equal weights have equal content.
    """
    tensors = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in detector.home_state_dict().items()
    }
    facts = {"detector": _title(detector), "class_names": json.dumps(detector.class_names), "format": "pt"}
    content = safetensors.torch.save(tensors, facts)  # the order of the metadata is another one each time
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps({**json.loads(content[8:start]), "__metadata__": facts}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[start:]


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
            f"give it that many class names, or set partial: true to leave the class layers out"
        )
    if missing:
        faults.append(f"weights: {source} lacks {len(missing)} tensors of {title}: {_shown(missing)}")
    if left_over:
        faults.append(f"weights: {source} holds {len(left_over)} tensors unknown to {title}: {_shown(left_over)}")
    if 2 * len(missing) > len(own) and (origin := origin_of(given)):
        faults.append(f"weights: {source}: {origin}")
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
    return name.endswith(("num_batches_tracked", "n_averaged"))


def _shown(names: list[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
