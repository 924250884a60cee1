"""The detectors of the transformers library behind this package's contract: one adapter for ten families."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationInfo, field_validator
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_convert, clip_boxes_to_image

from detkds.detectors.base import Detector
from detkds.detectors.options import Count, Fraction, Options, with_options_of
from detkds.detectors.transformers.build import BODY, check_config, load_model, new_model, stored_normalization
from detkds.detectors.transformers.families import FAMILIES, map_shapes
from detkds.detectors.transformers.parts import (
    gather_losses,
    idle_parameters,
    in_full_precision,
    library_target,
    projected_maps,
    valid_pixels,
)
from detkds.errors import ConfigError, WeightsError
from detkds.precision import full_precision
from detkds.registry import DETECTORS
from detkds.structures import Batch, Detections, DetectorInfo, DetectorOutput, FeatureSpec, Layout, Target

_EPSILON = 1e-5
"""The library's own distance from 0 and 1 where it takes logits of fractions."""


class TransformersOptions(Options):
    """Options of every detector of the transformers library."""

    pretrained: str | None = None
    """A ``save_pretrained`` folder or a name on the library's hub; None: random weights."""
    new_head: bool = False
    """Train new class layers where the pretrained model knows other classes."""
    size: Literal["nano"] | None = None
    """``nano``, as small as the family goes (for tests and a CPU); None: the library's default configuration."""
    backbone: str | None = None
    """``narrow<W>`` or a timm model in place of the family's body; LW-DETR and RF-DETR have none to exchange. A
    detector that reads one map has it at stride 16 with a narrow body; with a timm model at stride 32, or at 16 with
    ``config: {dilation: true}``."""
    backbone_weights: str | None = None
    """None, ``pretrained`` or a file or URL, for a timm model."""
    config: Mapping[str, Any] = {}
    """Further fields of the library's configuration class."""
    frozen_body: bool | None = None
    """Keep batch normalization in the body fixed, and with the DETR line its first stages, as the library does; None:
    only where weights are pretrained."""
    score_threshold: Fraction = 0.0
    """Detections score at least as much."""
    max_detections: Count = 100
    """Detections per image."""

    @field_validator("new_head")
    @classmethod
    def _has_a_head_to_replace(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("pretrained") is None:
            raise ConfigError("new_head: expected a pretrained model to replace the head of, got none")
        return value

    @field_validator("size", "backbone", "backbone_weights")
    @classmethod
    def _not_beside_pretrained(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("pretrained") is not None:
            raise ConfigError(f"{info.field_name}: expected nothing beside pretrained, got {value!r}")
        return value

    @field_validator("backbone_weights")
    @classmethod
    def _has_a_backbone(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("backbone") is None:
            raise ConfigError(f"backbone_weights: expected a backbone, the name of a timm model, for {value!r}")
        return value

    @field_validator("config")
    @classmethod
    def _is_known(cls, value: Mapping[str, Any], info: ValidationInfo) -> Mapping[str, Any]:
        faults = check_config(FAMILIES[info.context], value)  # type: ignore[index] - the name, see Options.checked
        if faults:
            raise ConfigError(faults)
        return value


class TransformersDetector(Detector):
    """A detector of the transformers library.

    One pass of the library's model gives the features (the encoder's maps, or the projector's where there is no
    encoder), the responses of the last decoder layer at each query, and in training mode with targets the library's
    own losses, weighted as it weighs them: ``loss_bbox`` and so on of the last layer, ``..._auxiliary`` of the layers
    before, ``..._denoising`` and ``..._encoder``. Queries that exist for training alone (denoising, groups) are not
    among the responses. Crowd regions have no meaning to these losses: they count as background.

    ``regression`` holds logits of the center, width and height of a box as fractions of the valid image, and
    ``boxes`` what they decode to, so that a box never leaves the image by its center nor exceeds it by its size.

    A batch is padded to the sides the model needs. A model that is told of padding gives boxes as fractions of the
    valid image; the RT-DETR line is not, so that padding is part of the picture to it: give it images of one size.

    Args:
        family: a key of :data:`~detkds.detectors.transformers.families.FAMILIES`.
        options: checked ones.

    Raises:
        ConfigError: the library refuses an option.
        WeightsError: pretrained weights cannot be had or do not fit.
    """

    def __init__(self, family: str, options: TransformersOptions) -> None:
        facts, names, config = FAMILIES[family], options.class_names, options.config
        pretrained, size = options.pretrained, options.size
        frozen = pretrained is not None if options.frozen_body is None else options.frozen_body
        normalization = facts.mean, facts.std
        if pretrained is not None:
            model = load_model(facts, names, config, pretrained, options.new_head, frozen)
            normalization = stored_normalization(pretrained) or normalization
        else:
            backbone = options.backbone
            if size == "nano" and facts.body is not None and "backbone_config" not in config:
                backbone = backbone or "narrow16"
            settings = {**facts.defaults, **(facts.nano if size == "nano" else {}), **config}
            model = new_model(facts, names, settings, backbone, options.backbone_weights, frozen)
        super().__init__(names, options.mean or normalization[0], options.std or normalization[1])
        self.facts = facts
        self.model: Any = model
        self.model.loss_function = partial(in_full_precision, self.model.loss_function)
        self.score_threshold = options.score_threshold
        self.max_detections = options.max_detections
        self.generator: torch.Generator | None = None
        self.strides, channels = facts.strides(model), facts.channels(model.config)
        levels = {f"p{round(math.log2(stride))}": FeatureSpec(channels, stride) for stride in self.strides}
        if len(levels) < len(self.strides):
            raise ConfigError(f"{family}: config: expected levels of different strides, got {self.strides}")
        self.info = DetectorInfo(
            levels,
            Layout(
                "query",
                facts.activation,
                len(names),
                regression="centre",
                class_names=names,
                bins=_bins(model.config) if facts.distribution else "",
            ),
        )

    def draw_from(self, generator: torch.Generator | None) -> None:
        """Draw denoising queries and dropout from this generator instead of torch's global one."""
        self.generator = generator

    def forward(self, batch: Batch) -> DetectorOutput:
        """One pass; see :meth:`Detector.forward` and the class. Losses are given in training mode."""
        raw, features, extent = self._run(batch, batch.targets if self.training else None)
        queries, sizes = self.facts.queries(self.model.config), batch.image_sizes.to(extent.device)
        logits = full_precision(raw.logits[:, queries])
        if self.facts.activation == "softmax":
            logits = logits.roll(1, dims=2)  # the library keeps the background last
        fractions = full_precision(raw.pred_boxes[:, queries]) * (extent / sizes).flip(1).repeat(1, 2)[:, None]
        output = DetectorOutput(
            features,
            batch.image_sizes,
            self.info.layout,
            logits={"query": logits.transpose(1, 2)},
            regression={"query": torch.logit(fractions, _EPSILON).transpose(1, 2)},
        )
        if self.facts.distribution:
            corners = full_precision(raw.intermediate_predicted_corners[:, -1, queries])
            output.box_distribution = {"query": corners.unflatten(2, (4, -1)).permute(0, 2, 3, 1)}
        if raw.loss is not None:
            output.losses = gather_losses(raw.loss_dict, self.facts.weights, self.model.config)
            output.losses["loss_bbox"] = output.losses["loss_bbox"] + idle_parameters(self.model)
        return self.restore(output)

    def predict(self, batch: Batch) -> list[Detections]:
        """Detections of each image, chosen as the library's post-processing does; see :meth:`Detector.predict`."""
        raw, _, extent = self._run(batch, None)
        queries = self.facts.queries(self.model.config)
        logits, fractions = full_precision(raw.logits[:, queries]), full_precision(raw.pred_boxes[:, queries])
        boxes = box_convert(fractions * extent.flip(1).repeat(1, 2)[:, None], "cxcywh", "xyxy")
        return [self._choose(*image) for image in zip(logits, boxes, batch.image_sizes.tolist(), strict=True)]

    def restore(self, output: DetectorOutput) -> DetectorOutput:
        """Boxes are decoded from the regression; see :meth:`Detector.restore`."""
        if not output.regression:
            return output
        fractions = output.regression["query"].sigmoid()
        scale = output.image_sizes.to(fractions.device).flip(1).repeat(1, 2)[:, :, None]
        center, half = (fractions * scale).split(2, dim=1)
        half = half / 2
        return replace(output, boxes={"query": torch.cat([center - half, center + half], dim=1)})

    def home_state_dict(self) -> dict[str, Tensor]:
        """The live weights under the library's names, without counters where the library's body has none."""
        counted = self.facts.features != "memory"
        state = self.model.state_dict()
        return {name: tensor for name, tensor in state.items() if counted or not name.endswith("num_batches_tracked")}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write configuration and weights as the library does; its ``from_pretrained`` loads the folder without us.

        Raises:
            WeightsError: the folder cannot be written.
        """
        try:
            self.model.save_pretrained(folder, state_dict=self.home_state_dict())
        except OSError as error:
            raise WeightsError(f"weights: {folder} cannot be written: {error}") from error

    @staticmethod
    def is_backbone(name: str) -> bool:
        """Whether a state-dict name belongs to the body (not to projections, encoder, decoder or head)."""
        return name.startswith("model.") and BODY.match(name.removeprefix("model.")) is not None

    def _run(self, batch: Batch, targets: Sequence[Target] | None) -> tuple[Any, dict[str, Tensor], Tensor]:
        """The library's output, the feature maps, and the sizes ``(N, 2)`` that its boxes are fractions of."""
        images = self.normalize(batch)
        height, width = images.shape[-2:]
        padded = self.facts.padded(self.model.config, self.strides, height, width)
        images = functional.pad(images, (0, padded[1] - width, 0, padded[0] - height))
        sizes = batch.image_sizes.to(images.device)
        extent = sizes if self.facts.masked else sizes.new_tensor(padded).expand(len(sizes), 2)
        arguments: dict[str, Any] = dict(self.facts.arguments)
        if self.facts.masked:
            arguments["pixel_mask"] = valid_pixels(sizes, padded)
        if targets is not None:
            arguments["labels"] = [library_target(*pair) for pair in zip(targets, extent, strict=True)]
        with self._draws(images.device), projected_maps(self.model, self.facts.features) as projected:
            raw = self.model(pixel_values=images, **arguments)
        maps = self._maps(raw, projected, padded)
        kept = map_shapes(self.strides, height, width)
        features = {
            level: maps[i][..., : kept[i][0], : kept[i][1]].contiguous() for i, level in enumerate(self.info.features)
        }
        return raw, features, extent

    def _maps(self, raw: Any, projected: list[Any], padded: tuple[int, int]) -> list[Tensor]:
        """The feature maps of the padded batch."""
        shapes = map_shapes(self.strides, *padded)
        if self.facts.features == "memory":
            tokens = raw.encoder_last_hidden_state.transpose(1, 2)
            parts = tokens.split([math.prod(shape) for shape in shapes], dim=2)
            return [part.unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]
        maps = raw.encoder_last_hidden_state if self.facts.features == "maps" else projected
        given = [tuple(features.shape[-2:]) for features in maps]
        if given != shapes:
            raise ConfigError(f"config: its strides announce feature maps of {shapes}, the model gives {given}")
        return list(maps)

    def _choose(self, logits: Tensor, boxes: Tensor, size: Sequence[int]) -> Detections:
        """The best detections of one image, from ``logits (Q, K)`` and ``boxes (Q, 4)``."""
        if self.facts.activation == "softmax":
            best, labels = logits.softmax(1)[:, :-1].max(1)
            scores, queries = best.topk(min(self.max_detections, len(best)))
            labels = labels[queries]
        else:
            scores, pairs = logits.sigmoid().flatten().topk(min(self.max_detections, logits.numel()))
            queries, labels = pairs // logits.shape[1], pairs % logits.shape[1]
        chosen = clip_boxes_to_image(boxes[queries], (size[0], size[1]))
        kept = (scores >= self.score_threshold) & (chosen[:, 2:] > chosen[:, :2]).all(1)
        return Detections(chosen[kept], scores[kept], labels[kept])

    @contextmanager
    def _draws(self, device: torch.device) -> Iterator[None]:
        """The library draws from torch's global generator: lend it a draw of the given one."""
        if self.generator is None or not self.training:
            yield
            return
        seed = torch.randint(2**62, (), generator=self.generator, device=self.generator.device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int(seed))
            yield


def _bins(config: Any) -> str:
    """What the bins of the sides' distributions stand for: distances from a first box of the query's own."""
    return f"{config.max_num_bins} of scale {config.reg_scale:g} up to {config.up:g}"


def _build(family: str, class_names: Sequence[str], options: Mapping[str, Any]) -> TransformersDetector:
    return TransformersDetector(family, TransformersOptions.checked(family, class_names=class_names, **options))


@DETECTORS.register("detr")
@with_options_of(TransformersOptions)
def detr(class_names: Sequence[str], **options: Any) -> TransformersDetector:
    """DETR: object queries, a transformer and bipartite matching (Carion et al. 2020, arXiv 2005.12872)."""
    return _build("detr", class_names, options)


@DETECTORS.register("conditional_detr")
@with_options_of(TransformersOptions)
def conditional_detr(class_names: Sequence[str], **options: Any) -> TransformersDetector:
    """Conditional DETR: spatial queries from reference points (Meng et al. 2021, arXiv 2108.06152)."""
    return _build("conditional_detr", class_names, options)


@DETECTORS.register("dab_detr")
@with_options_of(TransformersOptions)
def dab_detr(class_names: Sequence[str], **options: Any) -> TransformersDetector:
    """DAB-DETR: queries are boxes that each layer refines (Liu et al. 2022, arXiv 2201.12329)."""
    return _build("dab_detr", class_names, options)


@DETECTORS.register("deformable_detr")
@with_options_of(TransformersOptions)
def deformable_detr(class_names: Sequence[str], **options: Any) -> TransformersDetector:
    """Deformable DETR: attention to a few points on several levels (Zhu et al. 2021, arXiv 2010.04159)."""
    return _build("deformable_detr", class_names, options)


@DETECTORS.register("rt_detr")
@with_options_of(TransformersOptions)
def rt_detr(class_names: Sequence[str], **options: Any) -> TransformersDetector:
    """RT-DETR: a hybrid encoder and queries chosen among its cells (Zhao et al. 2024, arXiv 2304.08069)."""
    return _build("rt_detr", class_names, options)


@DETECTORS.register("rt_detr_v2")
@with_options_of(TransformersOptions)
def rt_detr_v2(class_names: Sequence[str], **options: Any) -> TransformersDetector:
    """RT-DETRv2: RT-DETR with points per level and discrete sampling (Lv et al. 2024, arXiv 2407.17140)."""
    return _build("rt_detr_v2", class_names, options)


@DETECTORS.register("d_fine")
@with_options_of(TransformersOptions)
def d_fine(class_names: Sequence[str], **options: Any) -> TransformersDetector:
    """D-FINE: boxes as distributions that each layer refines (Peng et al. 2025, arXiv 2410.13842)."""
    return _build("d_fine", class_names, options)


@DETECTORS.register("deim_v2")
@with_options_of(TransformersOptions)
def deim_v2(class_names: Sequence[str], **options: Any) -> TransformersDetector:
    """DEIMv2: D-FINE trained with dense one-to-one matching (Huang et al. 2025, arXiv 2509.20787)."""
    return _build("deim_v2", class_names, options)


@DETECTORS.register("lw_detr")
@with_options_of(TransformersOptions)
def lw_detr(class_names: Sequence[str], **options: Any) -> TransformersDetector:
    """LW-DETR: a plain vision transformer and a short decoder (Chen et al. 2024, arXiv 2406.03458)."""
    return _build("lw_detr", class_names, options)


@DETECTORS.register("rf_detr")
@with_options_of(TransformersOptions)
def rf_detr(class_names: Sequence[str], **options: Any) -> TransformersDetector:
    """RF-DETR: LW-DETR on a windowed DINOv2 body (Robinson et al. 2025, arXiv 2511.09554)."""
    return _build("rf_detr", class_names, options)
