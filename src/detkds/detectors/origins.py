"""Where weights come from, told by the names of their tensors, and what can be done with them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Origin:
    """A kind of file.

    Attributes:
        name: whose it is.
        pattern: which a name in such a file matches, and no name in another.
        advice: what to do with it.
        models: patterns of names that tell its models apart, most special first.
    """

    name: str
    pattern: str
    advice: str
    models: tuple[tuple[str, str], ...] = ()


_HOOKED = "describe the model with detector: hooked, which runs it by its own code"
_REGIONS = (
    (r"\.mask_head\.", "Mask R-CNN"),
    (r"^roi_head\.bbox_head\.0\.|^roi_heads\.box_predictor\.0\.", "Cascade R-CNN"),
    (r"^roi_heads?\.", "Faster R-CNN"),
)
ORIGINS = (
    Origin(
        "mmdetection",
        r"^(bbox_head|roi_head|rpn_head|neck\.(lateral|fpn)_convs|query_head)\.",
        _HOOKED,
        (
            *_REGIONS,
            (r"^bbox_head\.gfl_cls\.", "GFL"),
            (r"^bbox_head\.atss_cls\.", "ATSS"),
            (r"^bbox_head\.conv_centerness\.", "FCOS"),
            (r"^bbox_head\.reppoints_", "RepPoints"),
            (r"^bbox_head\.retina_cls\.", "RetinaNet"),
        ),
    ),
    Origin(
        "detectron2",
        r"^(backbone\.fpn_(lateral|output)\d|proposal_generator\.|roi_heads\.box_head\.fc\d|backbone\.bottom_up\.)",
        _HOOKED,
        (*_REGIONS, (r"^head\.bbox_subnet\.", "RetinaNet")),
    ),
    Origin("Ultralytics", r"^(model\.)*\d+\.(cv\d|m\.\d|conv|bn|dfl|one2one_cv\d)\.", _HOOKED, ((r"\.dfl\.", "YOLO"),)),
    Origin("RF-DETR", r"^(refpoint_embed\.|backbone\.0\.projector\.)", "convert it to transformers' RfDetr"),
    Origin("facebookresearch/detr", r"^(transformer\.decoder\.layers|query_embed\.)", "load transformers' conversion"),
    Origin("lyuwenyu/RT-DETR", r"^decoder\.(dec_|enc_|denoising_)", "load transformers' conversion"),
    Origin("transformers", r"^model\.(encoder|decoder|backbone)\.", "name the folder that save_pretrained wrote"),
    Origin(
        "torchvision",
        r"^(backbone\.fpn\.|rpn\.head\.|head\.classification_head\.)",
        "weights: torchvision/NAME sets the options of its published models",
        ((r"^roi_heads\.mask_", "Mask R-CNN"), (r"^roi_heads\.", "Faster R-CNN"), (r"bbox_ctrness", "FCOS")),
    ),
    Origin("a classifier", r"^(layer1\.0\.|blocks\.0\.|stages\.0\.|features\.0\.)", "give it as backbone_weights"),
)


def origin_of(names: Iterable[str]) -> str | None:
    """One line on where tensors of these names come from and what to do with them; None where nothing is known."""
    names = list(names)
    for origin in ORIGINS:
        if any(re.search(origin.pattern, name) for name in names):
            models = (model for pattern, model in origin.models if any(re.search(pattern, name) for name in names))
            model = next(models, None)
            return f"this looks like {origin.name}{f' ({model})' if model else ''}: {origin.advice}"
    return None
