"""Models of the transformers library: built from a configuration, or loaded from a folder or its hub."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from detkds.detectors.backbones import Backbone, build_backbone
from detkds.detectors.transformers.families import Family, narrow_body
from detkds.errors import ConfigError, WeightsError, unknown_name

BODY = re.compile(r"^model\.(backbone|conv_encoder)\.(conv_encoder\.)?(model|backbone)\.")
"""Names of the body's tensors in every family."""

_NARROW = re.compile(r"^narrow([1-9]\d*)$")
_CLASSIFIER = re.compile(r"(class_embed(\.\d+)?|class_labels_classifier|enc_score_head)$")
_QUERIES = re.compile(r"(query_\w+_embeddings|patterns)$")
_FROM_CLASS_NAMES = ("num_labels", "id2label", "label2id")


def library() -> Any:
    """The transformers package, imported when it is first needed: it is an extra, and takes seconds."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"this detector needs the transformers library ({error}): pip install 'detkds[transformers]'"
        ) from None
    return transformers


def library_class(family: Family, suffix: str) -> Any:
    """A class of the library, such as ``RTDetrConfig`` for the suffix ``Config``."""
    name, transformers = family.prefix + suffix, library()
    try:
        return getattr(transformers, name)
    except AttributeError:
        raise ConfigError(
            f"transformers {transformers.__version__} has no {name}: pip install -U 'detkds[transformers]'"
        ) from None


def check_config(family: Family, config: Mapping[str, Any]) -> list[str]:
    """One line per key that the family's configuration does not know, or that follows from the class names."""
    configuration = library_class(family, "Config")
    known = {field.name for field in dataclasses.fields(configuration)} | set(configuration.attribute_map)
    faults = [
        f"config: {unknown_name('key', key, known - set(_FROM_CLASS_NAMES))}" for key in config if key not in known
    ]
    return faults + [
        f"config: {key} follows from class_names; leave it out" for key in config if key in _FROM_CLASS_NAMES
    ]


def new_model(
    family: Family,
    class_names: Sequence[str],
    settings: Mapping[str, Any],
    backbone: str | None,
    backbone_weights: str | None,
    frozen: bool,
) -> Any:
    """A model with random weights, its body's from timm where ``backbone_weights`` says so.

    The library initializes what it is going to load weights over. Here the model is to be trained from scratch:
    convolutions and batch normalization start as torch starts them (the library draws the RT-DETR line's scales around
    0), the DETR line's transformer starts with Xavier's weights and queries that differ (Carion et al. 2020, arXiv
    2005.12872, section 4; the library draws both with a deviation of 0.02), what starts at 0 stays there, and a
    sigmoid head starts at a probability of 0.01 (Lin et al. 2017, arXiv 1708.02002, section 3.3).
    """
    library()
    from huggingface_hub.errors import StrictDataclassError

    settings, body = dict(settings), None
    if backbone is not None:
        settings["backbone_config"], body = _body_config(family, settings, backbone, backbone_weights, frozen)
    if family.features == "maps":
        settings.setdefault("freeze_backbone_batch_norms", frozen)
    try:
        config = library_class(family, "Config")(**settings, **_labels(class_names))
        model = library_class(family, "ForObjectDetection")(config)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AssertionError, RuntimeError) as error:
        raise ConfigError(f"config: the transformers library refuses it: {' '.join(str(error).split())}") from error
    _check_dilation(settings, model.config)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) or (isinstance(module, nn.Conv2d) and family.features == "maps"):
            module.reset_parameters()
        if isinstance(module, nn.Conv2d) and BODY.match(name) and family.body is not None:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if family.features == "memory" and not BODY.match(name):
            if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.any():
                nn.init.xavier_uniform_(module.weight)
            if isinstance(module, nn.Embedding) and _QUERIES.search(name):
                module.reset_parameters()
        if isinstance(module, nn.Linear) and _CLASSIFIER.search(name) and family.activation == "sigmoid":
            nn.init.constant_(module.bias, -math.log(1 / 0.01 - 1))
    if body is not None:
        network = next(module for module in model.modules() if hasattr(module, "feature_info"))
        network.load_state_dict(body.network.state_dict(), strict=False)
    if not frozen:
        thaw(model)
    return model


def load_model(
    family: Family,
    class_names: Sequence[str],
    settings: Mapping[str, Any],
    source: str,
    new_head: bool,
    frozen: bool,
) -> Any:
    """A model from a ``save_pretrained`` folder or the hub.

    Raises:
        ConfigError: the source is another detector, or knows other classes.
        WeightsError: it cannot be found or read, or lacks tensors.
    """
    configuration = library_class(family, "Config")
    try:
        stored, _ = configuration.get_config_dict(source)
    except (OSError, ValueError) as error:
        raise WeightsError(f"pretrained: {source} cannot be read: {_first_line(error)}") from error
    if stored.get("model_type") != configuration.model_type:
        raise ConfigError(
            f"pretrained: expected a {configuration.model_type} in {source}, got {stored.get('model_type')}"
        )
    if not new_head and (fault := _class_fault(source, stored, class_names)):
        raise ConfigError(fault)
    settings = dict(settings)
    if family.features == "maps":
        settings.setdefault("freeze_backbone_batch_norms", frozen)
    try:
        model, report = library_class(family, "ForObjectDetection").from_pretrained(
            source,
            **settings,
            **_labels(class_names),
            ignore_mismatched_sizes=new_head,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(f"pretrained: {source} cannot be loaded: {_first_line(error)}") from error
    _check_dilation(settings, model.config)
    missing = [key for key in report["missing_keys"] if not key.endswith("num_batches_tracked")]
    if missing:
        raise WeightsError(f"pretrained: {source} lacks {len(missing)} tensors: {', '.join(sorted(missing)[:10])}")
    if not frozen:
        thaw(model)
    return model.train()


def stored_normalization(source: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation that a pretrained model's image processor says, or None where it has none."""
    library()
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        processor, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except (OSError, ValueError):
        return None
    if not processor.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if "image_mean" not in processor or "image_std" not in processor:
        return None
    return tuple(processor["image_mean"]), tuple(processor["image_std"])


def thaw(model: nn.Module) -> None:
    """Train the whole body: batch normalization instead of the library's fixed one, no fixed stage."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("FrozenBatchNorm2d"):
                fixed = child.state_dict()
                norm = nn.BatchNorm2d(len(fixed["weight"]))
                norm.load_state_dict({**norm.state_dict(), **fixed})
                setattr(parent, name, norm)
    for name, parameter in model.named_parameters():
        if BODY.match(name):
            parameter.requires_grad_(True)


def _body_config(
    family: Family, settings: Mapping[str, Any], name: str, weights: str | None, frozen: bool
) -> tuple[dict[str, Any], Backbone | None]:
    """The configuration of a narrow or timm body, and the latter itself, for its weights."""
    if family.body is None:
        raise ConfigError("backbone: this detector's body is part of it; change it by config: {backbone_config: ...}")
    single = family.features == "memory" and settings.get("num_feature_levels") == 1
    levels = 1 if single else family.body_levels
    if narrow := _NARROW.match(name):
        if weights is not None:
            raise WeightsError(f"backbone {name}: there are no weights for it; leave backbone_weights out")
        return narrow_body(family.body, int(narrow[1]), levels), None
    strides = (8, 16, 32)[-levels:]
    body = build_backbone(name, strides, weights=weights)
    replaced = frozen or family.features == "memory"  # the library swaps it for fixed scales, losing its activation
    if body.channels_last or (replaced and any(isinstance(m, BatchNormAct2d) for m in body.network.modules())):
        raise ConfigError(
            f"backbone {name}: the transformers library cannot use it in this detector; choose one with maps "
            f"(N, C, H, W) and plain batch normalization, such as resnet50"
        )
    config = {
        "model_type": "timm_backbone",
        "backbone": name,
        "features_only": True,
        "use_pretrained_backbone": False,
        "out_indices": [body.positions[stride] for stride in strides],
    }
    return config | ({"output_stride": 16} if settings.get("dilation") else {}), body


def _check_dilation(settings: Mapping[str, Any], config: Any) -> None:
    """Raise where ``dilation`` is asked for and left out: the library hands it to its default body alone."""
    if settings.get("dilation") and getattr(config.backbone_config, "output_stride", None) not in (8, 16):
        raise ConfigError(
            "config: dilation: the transformers library leaves it out with this body; expected a timm model as "
            "backbone, or a backbone_config of one with output_stride: 16"
        )


def _labels(class_names: Sequence[str]) -> dict[str, Any]:
    return {
        "num_labels": len(class_names),
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: number for number, name in enumerate(class_names)},
    }


def _class_fault(source: str, stored: Mapping[str, Any], class_names: Sequence[str]) -> str | None:
    """Why a stored model's classes are not these, or None; names that say nothing are not compared."""
    labels = stored.get("id2label") or {}
    names = [str(labels[key]) for key in sorted(labels, key=int)]
    count = len(names) or int(stored.get("num_labels", 2))
    if count != len(class_names):
        shown = f" ({', '.join(names[:5])}{', ...' if count > 5 else ''})" if names else ""
        return (
            f"class_names: {source} knows {count} classes{shown}, got {len(class_names)}; name them all, "
            f"or set new_head: true to train new class layers"
        )
    if sorted(names) == sorted(class_names) and names != list(class_names):
        return f"class_names: expected the order of {source}: {', '.join(names)}; got {', '.join(class_names)}"
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
