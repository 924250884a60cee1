"""A detector as an ONNX file: one image of a fixed size to boxes, scores and labels."""

from __future__ import annotations

import copy
import importlib.util
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.onnx import symbolic_helper

from detkds.detectors.base import Detector
from detkds.errors import ConfigError
from detkds.structures import Batch, Detections

OUTPUTS = ("boxes", "scores", "labels")
_OPSET = 19
_EXTRA = {"onnx": "write ONNX files", "onnxruntime": "check them"}


class OneImage(nn.Module):
    """``images (1, 3, S, S)`` in [0, 1] to ``boxes (R, 4)`` in its pixels, ``scores (R,)`` and ``labels (R,)``.

    Normalization and suppression are part of it, masks are not. R varies; the best come first.
    """

    def __init__(self, detector: Detector, size: int) -> None:
        super().__init__()
        self.detector = detector
        self.size = size

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detections of the image."""
        detections = self.detect(images)
        return detections.boxes, detections.scores, detections.labels

    def detect(self, images: Tensor) -> Detections:
        """The same as :class:`Detections`."""
        sizes = torch.tensor([[self.size, self.size]])
        return self.detector.predict(Batch(images, sizes, (0,)))[0]


def one_image(detector: Detector, size: int) -> OneImage:
    """A copy of the detector on the CPU, in evaluation mode, for images of ``size`` x ``size`` pixels."""
    alone = copy.deepcopy(detector).cpu().requires_grad_(False)
    alone.info = replace(alone.info, masks=False)  # then it predicts boxes alone
    return OneImage(alone, size).eval()


def require(*packages: str) -> None:
    """Refuse to go on without packages of the extra ``onnx``.

    Raises:
        ConfigError: naming those that are absent, and how to install them.
    """
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        uses = " and ".join(_EXTRA[name] for name in absent)
        raise ConfigError(
            f"export: {', '.join(absent)} is needed to {uses}; install it with: pip install 'detkds[onnx]'"
        )


def letterbox(image: Tensor, size: int, color: Tensor) -> Tensor:
    """``(1, 3, h, w)`` at the top left of a ``(1, 3, size, size)`` of one color ``(1, 3, 1, 1)``.

    In the detector's mean color what is filled in becomes 0 by normalization, as the padding of a batch is.
    """
    canvas = color.expand(1, 3, size, size).clone()
    canvas[..., : image.shape[-2], : image.shape[-1]] = image
    return canvas


def write_onnx(module: OneImage, example: Tensor, path: Path) -> None:
    """Trace the detector on ``example (1, 3, S, S)``, an image with objects, and write the file.

    The tracing exporter of torch is used: the one built on ``torch.export`` refuses suppression, whose number of boxes
    depends on the image. Class names, mean color and the meaning of inputs and outputs are kept in the file.

    Raises:
        ConfigError: ONNX cannot express the detector, with the reason; or packages are absent.
    """
    require("onnx")
    import onnx

    register: Any = torch.onnx.register_custom_op_symbolic  # type: ignore[attr-defined] - documented, not in __all__
    register("torchvision::deform_conv2d", _deform_conv, _OPSET)
    register("aten::linspace", _linspace, _OPSET)
    detector = module.detector
    title = str(getattr(detector.core, "name", type(detector.core).__name__))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, which takes for constants what is constant here
        module(example)  # fills what is computed once per image size, outside of the trace
        try:
            torch.onnx.export(
                module,
                (example,),
                str(path),
                dynamo=False,
                opset_version=_OPSET,
                input_names=["images"],
                output_names=list(OUTPUTS),
                dynamic_axes={name: {0: "detections"} for name in OUTPUTS},
            )
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"export: {title} cannot be written as ONNX: {reason}") from error
    model = onnx.load(str(path))
    facts = {
        "detector": title,
        "class_names": json.dumps(detector.class_names),
        "mean_color": json.dumps([round(value, 6) for value in detector.mean.flatten().tolist()]),
        "input": f"images: RGB in [0, 1], resized so that the longer side has {module.size} pixels, filled up at the "
        "right and bottom with mean_color",
        "output": "boxes: x1, y1, x2, y2 in pixels of the input; scores, best first; labels: indices of class_names",
    }
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


@symbolic_helper.parse_args("v", "v", "v", "v", "v", "i", "i", "i", "i", "i", "i", "i", "i", "b")
def _deform_conv(
    graph: Any,
    maps: Any,
    weight: Any,
    offset: Any,
    mask: Any,
    bias: Any,
    stride_y: int,
    stride_x: int,
    pad_y: int,
    pad_x: int,
    dilation_y: int,
    dilation_x: int,
    groups: int,
    offset_groups: int,
    use_mask: bool,
) -> Any:
    """torchvision's deformable convolution as ONNX has it since opset 19; the exporter knows none."""
    return graph.op(
        "DeformConv",
        *(maps, weight, offset, bias, *([mask] if use_mask else [])),
        strides_i=[stride_y, stride_x],
        pads_i=[pad_y, pad_x] * 2,
        dilations_i=[dilation_y, dilation_x],
        group_i=groups,
        offset_group_i=offset_groups,
    )


def _linspace(graph: Any, start: Any, end: Any, steps: Any, *_: Any) -> Any:
    """``steps`` numbers from start to end; the exporter's own makes a single one, as for a map of one cell, NaN."""
    first, last, count = (
        graph.op("Cast", value, to_i=torch.onnx.TensorProtoDataType.FLOAT) for value in (start, end, steps)
    )
    zero, one = (graph.op("Constant", value_t=torch.tensor(value)) for value in (0.0, 1.0))
    step = graph.op("Div", graph.op("Sub", last, first), graph.op("Max", graph.op("Sub", count, one), one))
    return graph.op("Add", graph.op("Mul", graph.op("Range", zero, count, one), step), first)
