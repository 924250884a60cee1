"""Any torch detector as student or teacher: its features by hooks, its losses and predictions by three functions."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from torch import Tensor, nn

from detkds.detectors.backbones import IMAGENET_MEAN, IMAGENET_STD
from detkds.detectors.base import Detector, evaluating
from detkds.detectors.hooks import Tap, parse_tap, run_and_read
from detkds.detectors.options import Count, Options, with_options_of
from detkds.errors import ConfigError, Faults, unknown_name
from detkds.registry import DETECTORS
from detkds.structures import Batch, Detections, DetectorInfo, DetectorOutput, FeatureSpec, Layout

_GIVEN = {"features", "image_sizes", "layout", "losses", "branches"}
_RESPONSES = tuple(field.name for field in fields(DetectorOutput) if field.name not in _GIVEN)
_NEEDS = {
    "losses": "to train it; give a function (model, batch, raw) -> {name: scalar}, or use it as a teacher only",
    "predictions": "to predict or measure AP; give a function (model, batch, raw) -> one Detections per image",
}


class HookedLayout(BaseModel):
    """How responses are laid out; the fields are those of :class:`Layout`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["dense", "region", "query"]
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    anchors: Count = 1
    regression: Literal["deltas", "sides", "centre", "none"] = "none"
    anchor_key: str = ""


class HookedOptions(Options):
    """Options of :class:`Hooked`. Functions are given as such or as ``package.module:name``."""

    arguments: Mapping[str, Any] = {}
    """Keyword arguments of the callable that builds the model."""
    model: Any
    """The module itself, or ``package.module:callable`` that builds it from ``arguments``."""
    features: Any
    """``{level: [place, stride]}`` or ``{level: [place, stride, channels]}``; a place is the path of a module and where
    need be the part of its output, as in ``neck`` or ``neck[p3]``. Where channels are left out, the model is run once
    on an empty image, which also checks the strides."""
    inputs: Any = None
    """``(batch)`` to the model's arguments: a dict (by name), a tuple (by position) or a single one; by default
    ``images (N, 3, H, W)`` with ``mean`` and ``std`` taken out."""
    losses: Any = None
    """``(model, batch, raw)`` to ``{name: scalar}``; called in training mode where there are targets."""
    predictions: Any = None
    """``(model, batch, raw)`` to one :class:`Detections` per image; called in evaluation mode."""
    responses: Any = None
    """``(model, batch, raw)`` to some of the fields ``logits``, ``regression``, ``boxes``, ``box_distribution``,
    ``proposals`` and ``respond_at`` of :class:`DetectorOutput`, shaped as stated there."""
    layout: Annotated[HookedLayout | None, Field(validate_default=True)] = None
    """How they are laid out."""
    body: str = "backbone"
    """The path of the backbone, which a student does not inherit from its teacher."""
    probe_size: Count = 128
    """Side in pixels of the empty image."""

    @field_validator("inputs", "losses", "predictions", "responses")
    @classmethod
    def _import(cls, value: Any, info: ValidationInfo) -> Any:
        return _function(str(info.field_name), value)

    @field_validator("model")
    @classmethod
    def _build(cls, model: Any, info: ValidationInfo) -> nn.Module:
        if isinstance(model, nn.Module):
            return model
        build = _function("model", model)
        try:
            built = None if build is None else build(**info.data.get("arguments", {}))
        except TypeError as error:
            raise ConfigError(f"arguments: {model!r}: {error}") from None
        if not isinstance(built, nn.Module):
            raise ConfigError(f"model: expected a torch module from {model!r}, got a {type(built).__name__}")
        return built

    @field_validator("features")
    @classmethod
    def _parse(cls, features: Any, info: ValidationInfo) -> tuple[Tap, ...]:
        if not isinstance(features, Mapping) or not features:
            raise ConfigError(f"features: expected one level or more, such as {{p3: ['neck[0]', 8]}}, got {features!r}")
        taps, faults = [], Faults()
        for level, place in features.items() if "model" in info.data else ():
            try:
                taps.append(parse_tap(str(level), place, info.data["model"]))
            except ConfigError as error:
                faults.add(error)
        faults.raise_as(ConfigError)
        return tuple(taps)

    @field_validator("layout")
    @classmethod
    def _belongs_to_responses(cls, layout: HookedLayout | None, info: ValidationInfo) -> HookedLayout | None:
        if (info.data.get("responses") is None) != (layout is None) and "responses" in info.data:
            raise ConfigError(
                "responses, layout: expected both or neither; the layout says how the responses are to be read"
            )
        return layout


@DETECTORS.register("hooked")
class Hooked(Detector):
    """Any torch detector, described by where its features are and by functions for what else is asked of it.

    Functions are given as such or as ``package.module:name``. ``raw`` is what the model returns, in the mode it is in.
    Every pass runs the model once.

    Its options are those of :class:`HookedOptions`.

    Raises:
        ConfigError: listing every fault.
    """

    @with_options_of(HookedOptions)
    def __init__(self, class_names: Sequence[str], model: Any, features: Any, **options: Any) -> None:
        given = HookedOptions.checked("hooked", class_names=class_names, model=model, features=features, **options)
        module, taps = given.model, given.features
        super().__init__(given.class_names, given.mean or IMAGENET_MEAN, given.std or IMAGENET_STD)
        self.model = module
        self.functions = {name: getattr(given, name) for name in ("inputs", *_NEEDS, "responses")}
        self.body = given.body
        self.taps: tuple[Tap, ...] = taps
        self.to(next((parameter.device for parameter in module.parameters()), torch.device("cpu")))
        if any(tap.channels is None for tap in taps):
            self.taps = self._probed(given.probe_size)
        specs = {tap.level: FeatureSpec(tap.channels or 0, tap.stride) for tap in self.taps}
        asked = given.layout.model_dump() if given.layout is not None else {}
        names = given.class_names
        layout = Layout(**asked, num_classes=len(names) if asked else 0, class_names=names)
        self.info = DetectorInfo(specs, layout)

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
        results = list(self._call("predictions", batch, raw))
        if len(results) != len(batch.images) or not all(isinstance(result, Detections) for result in results):
            raise ConfigError(
                f"hooked: predictions: expected {len(batch.images)} Detections, got {len(results)} results"
            )
        return results

    def home_state_dict(self) -> dict[str, Tensor]:
        """The live weights under the model's own names."""
        return self.model.state_dict()

    def is_backbone(self, name: str) -> bool:  # type: ignore[override] - known of this one detector, not of its class
        """Whether a state-dict name belongs to ``body``."""
        return name.startswith(f"model.{self.body}.")

    def _run(self, batch: Batch) -> tuple[Any, dict[str, Tensor]]:
        prepare = self.functions["inputs"]
        asked = self.normalize(batch) if prepare is None else prepare(batch)
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
        try:
            with (
                evaluating(self),
                torch.no_grad(),
                torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            ):
                _, maps = self._run(Batch(image, torch.tensor([[size, size]], device=device), (0,)))
        except ConfigError as error:
            raise ConfigError(f"hooked: {fault}" for fault in error.faults) from None
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ConfigError(
                f"hooked: model: cannot be run on one image of {size} x {size} pixels ({reason}); "
                "give another probe_size, or the channels of every level, so that it need not be run"
            ) from error
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


def _function(name: str, value: Any) -> Callable[..., Any] | None:
    """The function itself, or the one at ``package.module:name``; None for None."""
    if value is None or callable(value):
        return value
    module, colon, path = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not (module and colon and path):
        raise ConfigError(f"{name}: expected a function or 'package.module:name', got {value!r}")
    try:
        target: Any = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{name}: {module!r} cannot be imported: {error}") from None
    for part in path.split("."):
        if not hasattr(target, part):
            raise ConfigError(f"{name}: {value!r}: {unknown_name('name', part, vars(target))}")
        target = getattr(target, part)
    if not callable(target):
        raise ConfigError(f"{name}: expected a function at {value!r}, got a {type(target).__name__}")
    return target


def _is_scalar(loss: Any) -> bool:
    return isinstance(loss, Tensor) and loss.ndim == 0
