"""How fast the losses are, against straightforward versions of the same as they are commonly written.

``masks``: foreground weights and background of every level, as ``fgbg`` builds them, against loops over images, levels
and boxes that write each box's window. The results must be equal, and the loops at least five times slower.

``losses``: forward and backward of whole losses down to the student's maps:

- ``fgbg l2``: foreground and background squares, against the loops' masks and multiplied-out means;
- ``cwd``: ``reshape(C)`` and ``kl``, against softmax and ``kl_div`` on rows;
- ``pkd``: ``norm_batch`` and ``l2``, against mean and deviation by autograd;
- ``ssim``: against depth-wise convolutions with an 11 x 11 window.

All but ``ssim`` (whose common version pads its windows with zeros) must give the same number. Both sides take turns;
medians of processor time are reported.

Run it with

    python benchmarks/loss_speed.py
    python benchmarks/loss_speed.py --out results/loss-speed.json

"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from detkds.distiller import Distiller
from detkds.knowledge.geometry import foreground_weight, valid_cells
from detkds.policy import Policy, Term
from detkds.structures import DetectorOutput, FeatureSpec, Target

STRIDES = {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
TARGET = 5.0
"""How many times faster than the loops the masks must be."""
Masks = dict[str, tuple[Tensor, Tensor]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the figures if asked to; 1 where results differ or the target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--height", type=int, default=800, help="pixels of the images")
    parser.add_argument("--width", type=int, default=1333)
    parser.add_argument("--images", type=int, default=16, help="images whose masks are built")
    parser.add_argument("--boxes", type=int, default=30, help="boxes of an image")
    parser.add_argument("--loss-images", type=int, default=1, help="images of the losses' maps")
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    size = options.height, options.width
    rows = [masks_row(options.images, options.boxes, size, options.repetitions)]
    rows += loss_rows(options.loss_images, options.boxes, size, options.channels, options.repetitions)
    print(f"{'':<10}{'detkds':>12}{'common':>12}{'faster':>9}  results")
    for row in rows:
        verdict = "equal" if row["equal"] else "differ" if row["must_equal"] else "not compared"
        print(f"{row['name']:<10}{row['ours_ms']:9.1f} ms{row['common_ms']:9.1f} ms{row['faster']:8.1f}x  {verdict}")
    missed = rows[0]["faster"] < TARGET
    print(f"masks: at least {TARGET:g}x wanted, {'missed' if missed else 'met'}")
    if options.out is not None:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        command = ["python", "benchmarks/loss_speed.py", *(sys.argv[1:] if arguments is None else arguments)]
        facts = {"command": " ".join(command), "machine": {**machine, "threads": options.threads}, "rows": rows}
        options.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return int(missed or any(row["must_equal"] and not row["equal"] for row in rows))


def masks_row(images: int, boxes: int, size: tuple[int, int], repetitions: int) -> dict[str, Any]:
    """The masks of all levels, ours and the loops'."""
    targets, sizes = scene(images, boxes, size)
    ours, common = our_masks(targets, sizes, size), looped_masks(targets, sizes, size)
    equal = all(torch.equal(a, b) for level in STRIDES for a, b in zip(ours[level], common[level], strict=True))
    parts = (lambda: our_masks(targets, sizes, size), lambda: looped_masks(targets, sizes, size))
    return row("masks", *timed(parts, repetitions), equal=equal)


def loss_rows(images: int, boxes: int, size: tuple[int, int], channels: int, repetitions: int) -> list[dict[str, Any]]:
    """Whole losses, forward and backward."""
    targets, sizes = scene(images, boxes, size)
    generator = torch.Generator().manual_seed(1)
    shapes = {level: (images, channels, *cells(size, stride)) for level, stride in STRIDES.items()}
    teacher = {level: torch.randn(shape, generator=generator) for level, shape in shapes.items()}
    student = {k: (v + 0.5 * torch.randn(v.shape, generator=generator)).requires_grad_() for k, v in teacher.items()}
    outputs = DetectorOutput(student, sizes), DetectorOutput(teacher, sizes)
    described = {level: FeatureSpec(channels, stride) for level, stride in STRIDES.items()}
    common: dict[str, tuple[Term, Callable[[], Tensor]]] = {
        "fgbg l2": (Term("fgbg", (), "l2"), lambda: common_fgbg(student, teacher, targets, sizes, size)),
        "cwd": (Term("global", ("reshape(C)",), "kl"), lambda: common_cwd(student, teacher)),
        "pkd": (Term("global", ("norm_batch",), "l2", 0.5), lambda: common_pkd(student, teacher)),
        "ssim": (Term("global", (), "ssim"), lambda: common_ssim(student, teacher)),
    }
    rows = []
    for name, (term, theirs) in common.items():
        distiller = Distiller(Policy([term]), student=described, teacher=described)

        def ours(distiller: Distiller = distiller) -> Tensor:
            return torch.stack([*distiller(*outputs, targets).values()]).sum()

        values = ours().item(), theirs().item()
        parts = (lambda ours=ours: down(ours(), student), lambda theirs=theirs: down(theirs(), student))
        equal = math.isclose(*values, rel_tol=1e-4)
        rows.append(row(name, *timed(parts, repetitions), equal=equal, must_equal=name != "ssim"))
    return rows


def scene(images: int, boxes: int, size: tuple[int, int]) -> tuple[list[Target], Tensor]:
    """Random boxes of 16 to 400 pixels a side, and valid sizes, every second image less high than the batch."""
    generator = torch.Generator().manual_seed(0)
    limits = torch.tensor([size[1], size[0]])
    targets = []
    for _ in range(images):
        sides = 16 + 384 * torch.rand(boxes, 2, generator=generator)
        corners = (limits - sides).clamp_min(0) * torch.rand(boxes, 2, generator=generator)
        targets.append(Target(boxes=torch.cat([corners, corners + sides], 1)))
    heights = [size[0] - (index % 2) * (size[0] // 4) for index in range(images)]
    return targets, torch.tensor([[height, size[1]] for height in heights])


def cells(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Rows and columns of a level's map."""
    return math.ceil(size[0] / stride), math.ceil(size[1] / stride)


def our_masks(targets: Sequence[Target], sizes: Tensor, size: tuple[int, int]) -> Masks:
    """Foreground weight and background, ``(N, 1, H, W)`` each, of every level, as ``fgbg`` builds them."""
    boxes = [target["boxes"] for target in targets]
    masks = {}
    for level, stride in STRIDES.items():
        valid = valid_cells(sizes, cells(size, stride), stride).float()
        foreground = foreground_weight(boxes, cells(size, stride), stride) * valid
        masks[level] = foreground, valid * (foreground == 0)
    return masks


def looped_masks(targets: Sequence[Target], sizes: Tensor, size: tuple[int, int]) -> Masks:
    """The same by loops over levels, images and boxes."""
    masks = {}
    for level, stride in STRIDES.items():
        height, width = cells(size, stride)
        foreground = torch.zeros(len(targets), 1, height, width)
        background = torch.zeros_like(foreground)
        for image, target in enumerate(targets):
            for box in target["boxes"]:
                left = min(max(math.floor(box[0].item() / stride), 0), width - 1)
                top = min(max(math.floor(box[1].item() / stride), 0), height - 1)
                right = max(min(math.ceil(box[2].item() / stride), width), left + 1)
                bottom = max(min(math.ceil(box[3].item() / stride), height), top + 1)
                area = torch.tensor(float((right - left) * (bottom - top)))
                window = foreground[image, 0, top:bottom, left:right]
                foreground[image, 0, top:bottom, left:right] = torch.maximum(window, 1 / area)
            rows = math.ceil(sizes[image, 0].item() / stride)
            columns = math.ceil(sizes[image, 1].item() / stride)
            foreground[image, 0, rows:] = 0
            foreground[image, 0, :, columns:] = 0
            background[image, 0, :rows, :columns] = (foreground[image, 0, :rows, :columns] == 0).float()
        masks[level] = foreground, background
    return masks


def common_fgbg(
    student: dict[str, Tensor],
    teacher: dict[str, Tensor],
    targets: Sequence[Target],
    sizes: Tensor,
    size: tuple[int, int],
) -> Tensor:
    """Weighted squares inside and, by half, outside the boxes."""
    total = torch.zeros(())
    for level, masks in looped_masks(targets, sizes, size).items():
        for mask, factor in zip(masks, (1.0, 0.5), strict=True):
            root = mask.sqrt()
            squares = (root * student[level] - root * teacher[level]) ** 2
            total = total + factor * squares.sum() / (student[level].shape[1] * mask.sum()).clamp_min(1e-12)
    return total


def common_cwd(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
    """Divergence of the softmax over positions, averaged over images and channels."""
    total = torch.zeros(())
    for level, ours in student.items():
        images, channels, height, width = ours.shape
        rows = ours.reshape(-1, height * width).log_softmax(1)
        wanted = teacher[level].reshape(-1, height * width).softmax(1)
        total = total + functional.kl_div(rows, wanted, reduction="sum") / (images * channels)
    return total


def common_pkd(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
    """Half the mean square between maps standardised per channel."""

    def standardised(maps: Tensor) -> Tensor:
        rows = maps.permute(1, 0, 2, 3).reshape(maps.shape[1], -1)
        rows = (rows - rows.mean(1, keepdim=True)) / (rows.std(1, unbiased=False, keepdim=True) + 1e-6)
        return rows.reshape(maps.shape[1], maps.shape[0], *maps.shape[2:]).permute(1, 0, 2, 3)

    parts = [functional.mse_loss(standardised(student[k]), standardised(teacher[k])) / 2 for k in student]
    return torch.stack(parts).sum()


def common_ssim(student: dict[str, Tensor], teacher: dict[str, Tensor], window: int = 11) -> Tensor:
    """Half of one minus the structural similarity, by five depth-wise convolutions; windows are padded with zeros."""
    offsets = torch.arange(window) - window // 2
    line = torch.exp(-(offsets**2) / (2 * 1.5**2))
    line = line / line.sum()
    total = torch.zeros(())
    for level, ours in student.items():
        theirs, channels = teacher[level], ours.shape[1]
        kernel = torch.outer(line, line).expand(channels, 1, window, window)

        def blurred(maps: Tensor, kernel: Tensor = kernel) -> Tensor:
            return functional.conv2d(maps, kernel, padding=window // 2, groups=maps.shape[1])

        extent = theirs.max() - theirs.min()
        c1, c2 = (0.01 * extent) ** 2, (0.03 * extent) ** 2
        mean_s, mean_t = blurred(ours), blurred(theirs)
        var_s = blurred(ours * ours) - mean_s**2
        var_t = blurred(theirs * theirs) - mean_t**2
        together = blurred(ours * theirs) - mean_s * mean_t
        similarity = (2 * mean_s * mean_t + c1) * (2 * together + c2)
        similarity = similarity / ((mean_s**2 + mean_t**2 + c1) * (var_s + var_t + c2))
        total = total + ((1 - similarity) / 2).mean()
    return total


def down(loss: Tensor, student: dict[str, Tensor]) -> None:
    """The gradient on the student's maps."""
    torch.autograd.grad(loss, list(student.values()))


def timed(parts: Sequence[Callable[[], object]], repetitions: int) -> list[float]:
    """Median milliseconds of each part, the parts taking turns, after one turn to warm up."""
    times: list[list[float]] = [[] for _ in parts]
    for repetition in range(repetitions + 1):
        for place, part in enumerate(parts):
            started = time.process_time()
            part()
            if repetition:
                times[place].append(1000 * (time.process_time() - started))
    return [statistics.median(values) for values in times]


def row(name: str, ours: float, common: float, *, equal: bool, must_equal: bool = True) -> dict[str, Any]:
    """One line of the table."""
    figures = {"ours_ms": round(ours, 2), "common_ms": round(common, 2), "faster": round(common / ours, 2)}
    return {"name": name, **figures, "equal": equal, "must_equal": must_equal}


if __name__ == "__main__":
    raise SystemExit(main())
