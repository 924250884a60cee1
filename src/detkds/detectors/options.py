"""Options of detectors as schemas: every fault is named at once, by the option's own name."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Self, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from detkds.detectors.backbones import Backbone, build_backbone, set_norm_eps
from detkds.errors import ConfigError, Faults, unknown_name

UNNAMED = "N/A"
"""A column of class logits that stands for no class; a list of names may have any number of them."""

Builder = TypeVar("Builder", bound=Callable[..., Any])


def _expected(text: str, **bounds: Any) -> Any:
    """A field with these bounds, and what to say of a value outside them."""
    return Field(json_schema_extra={"expected": text}, **bounds)


def _check_names(names: Any) -> Any:
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise ConfigError(f"class_names: expected a list of one or more names, got {names!r}")
    faults = Faults("class_names")
    if wrong := [name for name in names if not isinstance(name, str) or not name]:
        faults.add(f"expected non-empty strings, got {wrong!r}")
    counts = Counter(name for name in names if isinstance(name, str) and name != UNNAMED)
    if repeated := sorted(name for name, count in counts.items() if count > 1):
        faults.add(f"expected different names, got {', '.join(repeated)} more than once")
    faults.raise_as(ConfigError)
    return names


ClassNames = Annotated[tuple[str, ...], BeforeValidator(_check_names)]
Count = Annotated[int, _expected("a whole number >= 1", strict=True, ge=1)]
CountOrNone = Annotated[int, _expected("a whole number >= 0", strict=True, ge=0)]
Fraction = Annotated[float, _expected("a number from 0 to 1", strict=True, ge=0, le=1)]
FractionOrNone = Annotated[float | None, _expected("a number from 0 to 1", strict=True, ge=0, le=1)]
Positive = Annotated[float, _expected("a finite number > 0", strict=True, gt=0, allow_inf_nan=False)]
Positives = Annotated[tuple[Positive, ...], _expected("a list of one or more finite numbers > 0", min_length=1)]
Channels = Annotated[tuple[float, float, float] | None, _expected("three numbers, of red, green and blue")]


class Options(BaseModel):
    """What a detector is built from; unknown options are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, use_attribute_docstrings=True)

    class_names: ClassNames
    """One name per class, in label order; columns named ``N/A`` stand for no class."""
    mean: Channels = None
    """Input normalization of images in [0, 1]; None: that of the weights or the body."""
    std: Channels = None
    """Likewise."""

    @classmethod
    def checked(cls, detector: str, **values: Any) -> Self:
        """The options of a detector.

        Raises:
            ConfigError: listing every fault, each under the name of the detector.
        """
        try:
            return cls.model_validate(values, context=detector)
        except ValidationError as error:
            lines = dict.fromkeys(line for fault in error.errors() for line in cls._lines(fault, values))
            raise ConfigError(f"{detector}: {line}" for line in lines) from None

    @classmethod
    def _lines(cls, fault: Any, values: Mapping[str, Any]) -> list[str]:
        name, *below = map(str, fault["loc"])
        kind, path = fault["type"], ".".join((name, *below))
        if kind == "extra_forbidden":
            *parents, unknown = name, *below
            line = unknown_name("key" if parents else "option", unknown, _fields_at(cls, parents))
            return [": ".join((*parents, line))]
        if kind == "missing":
            return [f"{path}: expected a value, got nothing"]
        if kind == "value_error":
            return str(fault["ctx"]["error"]).splitlines()
        if kind == "literal_error":
            return [unknown_name(path, fault["input"], re.findall(r"'([^']*)'", fault["ctx"]["expected"]))]
        extra: Any = cls.model_fields[name].json_schema_extra or {}
        expected = extra.get("expected") or fault["msg"].removeprefix("Input should be ")
        return [f"{name}: expected {expected}, got {values.get(name)!r}"]


def _fields_at(model: Any, path: Sequence[str]) -> list[str]:
    """The fields of a schema, or of the one that is nested at a path in it; class names are no option."""
    for name in path:
        annotation = model.model_fields[name].annotation
        model = next(part for part in (annotation, *get_args(annotation)) if hasattr(part, "model_fields"))
    return [name for name in model.model_fields if name != "class_names"]


class BodyOptions(Options):
    """Options of every detector that has a pyramid on a backbone body."""

    backbone: str = "resnet50"
    """``narrow<W>`` or a timm model that has maps at the strides needed."""
    backbone_weights: str | None = None
    """None, ``pretrained`` or a file or URL."""
    backbone_options: Mapping[str, Any] | None = None
    """Further arguments of the timm model."""
    frozen_norm: bool = False
    """Fixed batch normalization in the body."""
    norm_eps: FractionOrNone = None
    """What is added to variances in the body's normalization; None: the body's own. torchvision's first published
    weights want 0."""
    neck_channels: Count = 256
    """Channels of the pyramid, and of the head of a one-stage detector."""
    score_threshold: Fraction = 0.05
    """Detections score more."""
    nms_threshold: Fraction = 0.5
    """IoU above which the lower of two boxes of a class is dropped."""
    max_detections: Count = 100
    """Detections per image."""

    def body(self, strides: Sequence[int]) -> Backbone:
        """The body, with maps at these strides.

        Raises:
            UserError: see :func:`build_backbone`.
        """
        body = build_backbone(
            self.backbone,
            strides,
            weights=self.backbone_weights,
            frozen_norm=self.frozen_norm,
            options=self.backbone_options,
        )
        if self.norm_eps is not None:
            set_norm_eps(body.network, self.norm_eps)
        return body


def with_options_of(schema: type[Options]) -> Callable[[Builder], Builder]:
    """For a function that hands its ``**options`` to a schema: name the schema's fields among its own arguments."""

    def decorate(function: Builder) -> Builder:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        names = {parameter.name for parameter in own}
        fields = [p for p in inspect.signature(schema).parameters.values() if p.name not in names]
        announced: Any = function
        announced.__signature__ = signature.replace(parameters=[*own, *fields])
        return function

    return decorate
