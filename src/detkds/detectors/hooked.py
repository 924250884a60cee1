"""Any torch detector as student or teacher: its features by hooks, its losses and predictions by three functions."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from detkds.detectors.base import Detector
from detkds.detectors.hooks import Tap, parse_tap, run_and_read
from detkds.detectors.options import check_choice, check_class_names, check_whole
from detkds.errors import ConfigError, Faults, unknown_name
from detkds.registry import DETECTORS
from detkds.structures import Batch, Detections, DetectorInfo, DetectorOutput, FeatureSpec, Layout

Function = Callable[..., Any] | str
_GIVEN = {"features", "image_sizes", "layout", "losses", "branches"}
_RESPONSES = tuple(field.name for field in fields(DetectorOutput) if field.name not in _GIVEN)
_LAYOUT = ("kind", "activation", "anchors", "regression", "anchor_key")
_CHOICES = {
    "kind": ("dense", "region", "query"),
    "activation": ("sigmoid", "softmax"),
    "regression": ("deltas", "sides", "centre", "none"),
}
_NEEDS = {
    "losses": "to train it; give a function (model, batch, raw) -> {name: scalar}, or use it as a teacher only",
    "predictions": "to predict or measure AP; give a function (model, batch, raw) -> one Detections per image",
}


@DETECTORS.register("hooked")
class Hooked(Detector):
    """Any torch detector, described by where its features are and by functions for what else is asked of it.

    Functions are given as such or as ``package.module:name``. ``raw`` is what the model returns, in the mode it is in.
    Every pass runs the model once.

    Args:
        class_names: one name per class, in label order.
        model: the module itself, or ``package.module:callable`` that builds it from ``arguments``.
        features: ``{level: [place, stride]}`` or ``{level: [place, stride, channels]}``; a place is the path of a
            module and where need be the part of its output, as in ``neck`` or ``neck[p3]``. Where channels are left
            out, the model is run once on an empty image, which also checks the strides.
        arguments: keyword arguments of the callable that builds the model.
        inputs: ``(batch)`` to the model's arguments: a dict (by name), a tuple (by position) or a single one; by
            default ``images (N, 3, H, W)`` with ``mean`` and ``std`` taken out.
        losses: ``(model, batch, raw)`` to ``{name: scalar}``; called in training mode where there are targets.
        predictions: ``(model, batch, raw)`` to one :class:`Detections` per image; called in evaluation mode.
        responses: ``(model, batch, raw)`` to some of the fields ``logits``, ``regression``, ``boxes``,
            ``box_distribution``, ``proposals`` and ``respond_at`` of :class:`DetectorOutput`, shaped as stated there.
        layout: how they are laid out: ``kind``, ``activation``, ``anchors``, ``regression`` and ``anchor_key`` of
            :class:`Layout`.
        body: the path of the backbone, which a student does not inherit from its teacher.
        probe_size: side in pixels of the empty image.
        mean, std: input normalisation of images in [0, 1].

    Raises:
        ConfigError: listing every fault.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        model: nn.Module | str,
        features: Mapping[str, Sequence[Any]],
        *,
        arguments: Mapping[str, Any] | None = None,
        inputs: Function | None = None,
        losses: Function | None = None,
        predictions: Function | None = None,
        responses: Function | None = None,
        layout: Mapping[str, Any] | None = None,
        body: str = "backbone",
        probe_size: int = 128,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        faults = Faults("hooked")
        check_class_names(faults, class_names)
        check_whole(faults, probe_size=probe_size)
        given = {"inputs": inputs, "losses": losses, "predictions": predictions, "responses": responses}
        functions = {name: _resolved(faults, name, value) for name, value in given.items()}
        if (responses is None) != (layout is None):
            faults.add("responses, layout: expected both or neither; the layout says how the responses are to be read")
        described = _layout(faults, layout or {}, class_names)
        module = _built(faults, model, arguments or {})
        taps = [] if module is None else _taps(faults, module, features)
        faults.raise_as(ConfigError)
        assert module is not None
        super().__init__(class_names, mean, std)
        self.model = module
        self.functions = functions
        self.body = body
        self.taps = tuple(taps)
        self.to(next((one.device for one in module.parameters()), torch.device("cpu")))
        if any(tap.channels is None for tap in taps):
            self.taps = self._probed(probe_size)
        specs = {tap.level: FeatureSpec(tap.channels or 0, tap.stride) for tap in self.taps}
        self.info = DetectorInfo(specs, described)

    def forward(self, batch: Batch) -> DetectorOutput:
        """One pass; see :meth:`Detector.forward`. Losses are given in training mode, where there are targets."""
        raw, features = self._run(batch)
        output = DetectorOutput(features, batch.image_sizes, self.info.layout)
        if self.functions["responses"] is not None:
            given = self._call("responses", batch, raw)
            if unknown := [name for name in given if name not in _RESPONSES]:
                raise ConfigError(f"hooked: responses: {unknown_name('field', name, _RESPONSES)}" for name in unknown)
            output = replace(output, **given)
        if self.training and batch.targets is not None:
            output.losses = dict(self._call("losses", batch, raw))
            if wrong := [name for name, loss in output.losses.items() if not _is_scalar(loss)]:
                raise ConfigError(f"hooked: losses: expected scalar tensors, got something else as {', '.join(wrong)}")
        return output

    def predict(self, batch: Batch) -> list[Detections]:
        """Detections of each image; see :meth:`Detector.predict`."""
        raw, _ = self._run(batch)
        found = list(self._call("predictions", batch, raw))
        if len(found) != len(batch.images) or not all(isinstance(one, Detections) for one in found):
            raise ConfigError(f"hooked: predictions: expected {len(batch.images)} Detections, got {len(found)} results")
        return found

    def home_state_dict(self) -> dict[str, Tensor]:
        """The live weights under the model's own names."""
        return self.model.state_dict()

    def is_backbone(self, name: str) -> bool:  # type: ignore[override] - known of this one detector, not of its class
        """Whether a state-dict name belongs to ``body``."""
        return name.startswith(f"model.{self.body}.")

    def _run(self, batch: Batch) -> tuple[Any, dict[str, Tensor]]:
        prepare = self.functions["inputs"]
        asked = self.normalise(batch) if prepare is None else prepare(batch)
        if isinstance(asked, Mapping):
            return run_and_read(self.model, self.taps, (), asked)
        return run_and_read(self.model, self.taps, asked if isinstance(asked, tuple) else (asked,), {})

    def _call(self, name: str, batch: Batch, raw: Any) -> Any:
        function = self.functions[name]
        if function is None:
            raise ConfigError(f"hooked: {name}: needed {_NEEDS[name]}")
        return function(self.model, batch, raw)

    def _probed(self, size: int) -> tuple[Tap, ...]:
        """The taps with their channels, from one pass over an empty image that leaves no trace in the model."""
        device = self.mean.device
        image = torch.zeros(1, 3, size, size, device=device)
        modes = [(part, part.training) for part in self.modules()]
        self.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                _, maps = self._run(Batch(image, torch.tensor([[size, size]], device=device), (0,)))
        except ConfigError as error:
            raise ConfigError(f"hooked: {fault}" for fault in error.faults) from None
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ConfigError(
                f"hooked: model: cannot be run on one image of {size} x {size} pixels ({reason}); "
                "give another probe_size, or the channels of every level, so that it need not be run"
            ) from error
        finally:
            for part, training in modes:
                part.training = training
        faults = Faults("hooked")
        for tap in self.taps:
            cells = maps[tap.level].shape[-1]
            if abs(cells - size / tap.stride) > 1:
                faults.add(
                    f"features.{tap.level}: expected {size / tap.stride:g} cells across {size} pixels, got {cells} "
                    f"from {tap.place!r}; its stride is about {size / cells:g}, not {tap.stride:g}"
                )
        faults.raise_as(ConfigError)
        return tuple(replace(tap, channels=maps[tap.level].shape[1]) for tap in self.taps)


def _resolved(faults: Faults, name: str, value: Any) -> Callable[..., Any] | None:
    """The function itself; None where there is none, or where it cannot be had, which is then a fault."""
    if value is None or callable(value):
        return value
    module, colon, path = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not (module and colon and path):
        faults.add(f"{name}: expected a function or 'package.module:name', got {value!r}")
        return None
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        faults.add(f"{name}: {module!r} cannot be imported: {error}")
        return None
    for part in path.split("."):
        if not hasattr(found, part):
            faults.add(f"{name}: {value!r}: {unknown_name('name', part, vars(found))}")
            return None
        found = getattr(found, part)
    if not callable(found):
        faults.add(f"{name}: expected a function at {value!r}, got a {type(found).__name__}")
        return None
    return found


def _built(faults: Faults, model: Any, arguments: Mapping[str, Any]) -> nn.Module | None:
    if isinstance(model, nn.Module):
        return model
    build = _resolved(faults, "model", model)
    if build is None:
        return None
    try:
        built = build(**arguments)
    except TypeError as error:
        faults.add(f"arguments: {model!r}: {error}")
        return None
    if not isinstance(built, nn.Module):
        faults.add(f"model: expected a torch module from {model!r}, got a {type(built).__name__}")
        return None
    return built


def _taps(faults: Faults, model: nn.Module, features: Any) -> list[Tap]:
    if not isinstance(features, Mapping) or not features:
        faults.add(f"features: expected one level or more, such as {{p3: ['neck[0]', 8]}}, got {features!r}")
        return []
    taps = []
    for level, place in features.items():
        try:
            taps.append(parse_tap(str(level), place, model))
        except ConfigError as error:
            faults.add(error)
    return taps


def _layout(faults: Faults, given: Mapping[str, Any], class_names: Sequence[str]) -> Layout:
    unknown = [name for name in given if name not in _LAYOUT]
    for name in unknown:
        faults.add(f"layout: {unknown_name('key', name, _LAYOUT)}")
    for name in given.keys() & _CHOICES.keys():
        check_choice(faults, _CHOICES[name], **{name: given[name]})
    check_whole(faults, anchors=given.get("anchors", 1))
    known = {name: value for name, value in given.items() if name not in unknown}
    return Layout(**known, num_classes=len(class_names) if given else 0, class_names=tuple(class_names))


def _is_scalar(loss: Any) -> bool:
    return isinstance(loss, Tensor) and loss.ndim == 0
