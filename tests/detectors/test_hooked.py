"""Foreign detectors: where their maps are, what their functions give, and what is said where something is wrong."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from detkds import Distiller, load_policy
from detkds.config_file import parse_config
from detkds.detectors import Detector, build_detector
from detkds.detectors.hooked import Hooked
from detkds.detectors.hooks import parse_tap
from detkds.errors import ConfigError
from detkds.runs.plan import make_plan
from detkds.structures import Batch, Detections, FeatureSpec

CLASSES = ("ant", "bee", "cat")


class Maps(NamedTuple):
    fine: Tensor
    coarse: Tensor


class Neck(nn.Module):
    """Gives its maps in every way that is met."""

    def forward(self, x: Tensor) -> dict[Any, Any]:
        return {"p3": x, 1: [x + 1, x + 2], "named": Maps(x + 3, x + 4), "object": SimpleNamespace(map=x + 5)}


class Foreign(nn.Module):
    """A model of one convolution per level; what it returns is one score per image."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, channels, 3, 4, 1), nn.BatchNorm2d(channels), nn.ReLU())
        self.deep = nn.Conv2d(channels, 2 * channels, 3, 2, 1)
        self.neck = Neck()
        self.score = nn.Linear(2 * channels, 1)
        self.unused = nn.Identity()
        self.passes = 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        fine = self.backbone(images)
        deep = self.neck(self.deep(fine))["p3"]
        return self.score(deep.mean((2, 3)))


FEATURES: dict[str, Any] = {"fine": ["backbone", 4], "p3": ["neck[p3]", 8]}


def losses(model: nn.Module, batch: Batch, raw: Tensor) -> dict[str, Tensor]:
    return {"score": raw.square().mean()}


def predictions(model: nn.Module, batch: Batch, raw: Tensor) -> list[Detections]:
    return [Detections(torch.tensor([[0.0, 0, 9, 9]]), one.detach(), torch.tensor([0])) for one in raw]


def hooked(model: Any = None, features: Any = None, **options: Any) -> Hooked:
    torch.manual_seed(0)
    options = {"losses": losses, "predictions": predictions, **options}
    detector = build_detector("hooked", CLASSES, model=model or Foreign(), features=features or FEATURES, **options)
    assert isinstance(detector, Hooked)
    return detector


def test_maps_are_those_of_the_model_in_one_pass(batch: Batch) -> None:
    detector = hooked().eval()
    detector.model.passes = 0
    output = detector(batch)
    images = detector.normalize(batch)
    assert detector.model.passes == 1
    assert torch.equal(output.features["fine"], detector.model.backbone(images))
    assert torch.equal(output.features["p3"], detector.model.deep(detector.model.backbone(images)))
    assert output.losses == {} and output.layout.kind == "none"


def test_channels_are_found_out_without_a_trace_in_the_model() -> None:
    model = Foreign(channels=5).train()
    model.deep.eval()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    detector = Hooked(CLASSES, model, FEATURES)
    assert detector.info.features == {"fine": FeatureSpec(5, 4), "p3": FeatureSpec(10, 8)}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training and not model.deep.training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_declared_channels_need_no_pass() -> None:
    model = Foreign()
    detector = hooked(model, {"fine": ["backbone", 4, 6], "p3": ["neck[p3]", 8, 12]})
    assert model.passes == 0
    assert detector.info.features["p3"] == FeatureSpec(12, 8)


@pytest.mark.parametrize(
    ("place", "offset"),
    [
        ("neck[p3]", 0),
        ("neck[1][0]", 1),
        ("neck[1][-1]", 2),
        ("neck[named][fine]", 3),
        ("neck[named][1]", 4),
        ("neck[object][map]", 5),
    ],
)
def test_parts_of_an_output(place: str, offset: int, batch: Batch) -> None:
    detector = hooked(features={"p3": [place, 8], "plain": ["deep", 8]}).eval()
    features = detector(batch).features
    torch.testing.assert_close(features["p3"], features["plain"] + offset)


def test_training_gives_losses_and_gradient_through_the_maps(batch: Batch) -> None:
    detector = hooked().train()
    output = detector(batch)
    assert list(output.losses) == ["score"]
    output.features["fine"].sum().backward()
    assert detector.model.backbone[0].weight.grad.abs().sum() > 0
    assert detector.model.score.weight.grad is None


def test_copies_states_and_wrappers_know_nothing_of_hooks(batch: Batch, tmp_path: Path) -> None:
    detector = hooked().eval()
    detector(batch)
    twin = copy.deepcopy(detector)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
        assert twin(batch).features["p3"].abs().sum() == 0 < detector(batch).features["p3"].abs().sum()
    assert not any(module._forward_hooks for module in detector.modules())
    torch.save(detector.state_dict(), tmp_path / "state.pt")
    twin.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(twin(batch).features["p3"], detector(batch).features["p3"])
    wrapped = nn.DataParallel(detector)
    assert torch.equal(wrapped(batch).features["p3"], detector(batch).features["p3"])
    assert set(detector.home_state_dict()) == set(Foreign().state_dict())


def test_a_failed_pass_leaves_no_hook_behind(batch: Batch) -> None:
    detector = hooked()
    detector.model.score = nn.Linear(3, 1)
    with pytest.raises(RuntimeError):
        detector(batch)
    assert not any(module._forward_hooks for module in detector.modules())


@pytest.mark.parametrize(
    "inputs", [lambda batch: batch.images, lambda batch: (batch.images,), lambda batch: {"images": batch.images}]
)
def test_inputs_by_position_or_name(inputs: Callable[[Batch], Any], batch: Batch) -> None:
    detector = hooked(inputs=inputs).eval()
    assert torch.equal(detector(batch).features["fine"], detector.model.backbone(batch.images))


def test_responses_are_put_in_their_fields(batch: Batch) -> None:
    def responses(model: nn.Module, batch: Batch, raw: Tensor) -> dict[str, Any]:
        return {"logits": {"p3": raw.reshape(-1, 1, 1, 1, 1)}}

    layout = {"kind": "dense", "activation": "softmax", "anchors": 1, "regression": "sides"}
    detector = hooked(responses=responses, layout=layout).eval()
    output = detector(batch)
    assert output.logits["p3"].shape == (2, 1, 1, 1, 1)
    assert output.layout == detector.info.layout
    assert (output.layout.num_classes, output.layout.class_names) == (3, CLASSES)
    with pytest.raises(ConfigError, match="unknown field 'logit'; did you mean 'logits'"):
        hooked(responses=lambda *_: {"logit": {}}, layout=layout)(batch)


def test_inherit_leaves_the_body_alone() -> None:
    teacher, student = hooked(Foreign()), hooked(Foreign())
    copied = student.inherit(teacher)
    assert copied and not any(name.startswith("model.backbone.") for name in copied)
    assert hooked(body="deep").is_backbone("model.deep.weight")


def test_a_teacher_needs_neither_losses_nor_predictions(batch: Batch) -> None:
    detector = build_detector("hooked", CLASSES, model=Foreign(), features=FEATURES).eval()
    assert set(detector(batch).features) == {"fine", "p3"}
    with pytest.raises(ConfigError, match="predictions: needed to predict"):
        detector.predict(batch)
    with pytest.raises(ConfigError, match="losses: needed to train it"):
        detector.train()(batch)


@pytest.mark.parametrize("given", [{"all": torch.ones(2)}, {"all": 1.0}])
def test_losses_must_be_scalars(given: Any, batch: Batch) -> None:
    with pytest.raises(ConfigError, match=r"losses: expected scalar tensors.*as all"):
        hooked(losses=lambda *_: given).train()(batch)


@pytest.mark.parametrize(("given", "count"), [([], 0), ([{}, {}], 2)])
def test_predictions_must_be_one_per_image(given: Any, count: int, batch: Batch) -> None:
    with pytest.raises(ConfigError, match=f"predictions: expected 2 Detections, got {count} results"):
        hooked(predictions=lambda *_: given).eval().predict(batch)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            ["neck", 8],
            r"expected a map \(N, C, H, W\) from 'neck', got a dict with the keys p3, 1, named, object; name",
        ),
        (["neck[p4]", 8], r"there is no \[p4\] in the output of 'neck', which is a dict with the keys p3, 1"),
        (["neck[1][7]", 8], r"there is no \[7\] in the output of 'neck\[1\]', which is a list of 2"),
        (["score", 8], r"expected a map \(N, C, H, W\) from 'score', got a tensor \(1, 1\)"),
        (["deep", 8, 9], r"expected a map \(N, 9, H, W\) from 'deep', got a tensor \(1, 12, 16, 16\)"),
        (["deep", 4], "expected 32 cells across 128 pixels, got 16 from 'deep'; its stride is about 8, not 4"),
        (["unused", 8], "module 'unused' does not run in one pass"),
        (["dep", 8], "the model has no module 'dep'; near: deep"),
        (["backbone.7", 8], "the model has no module 'backbone.7'; near: backbone.2, backbone.1, backbone.0"),
        (["neck[p3", 8], r"expected \[module, stride\]"),
        (["neck[p3]"], r"expected \[module, stride\]"),
        (["neck[p3]", 0], r"expected \[module, stride\]"),
        (["neck[p3]", 8, 1.5], r"expected \[module, stride\]"),
        ("neck[p3]", r"expected \[module, stride\]"),
    ],
)
def test_a_wrong_place_is_explained(place: Any, message: str) -> None:
    with pytest.raises(ConfigError, match="hooked: features.x: .*" + message):
        hooked(features={"fine": ["backbone", 4], "x": place})


def test_a_module_that_runs_twice_is_refused() -> None:
    class Twice(Foreign):
        def forward(self, images: Tensor) -> Tensor:
            self.unused(images)
            self.unused(images)
            return super().forward(images)

    with pytest.raises(ConfigError, match="'unused' runs 2 times in one pass"):
        hooked(Twice(), {"x": ["unused", 1]})


def test_all_faults_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        build_detector(
            "hooked",
            ["a", "a"],
            model=Foreign(),
            features={"x": ["dep", 8], "y": "neck"},
            losses="no_such_module:losses",
            inputs="math:sinhh",
            predictions=3,
            responses="math:pi",
            layout={"kind": "dens", "anchor": 1},
            probe_size=0,
        )
    text = str(caught.value)
    expected = ("class_names", "'dep'", "features.y", "no_such_module", "'sinh'", "predictions: expected a function")
    assert all(word in text for word in (*expected, "at 'math:pi', got a float", "'dense'", "'anchors'", "probe_size"))
    for given, message in (
        ({"model": "math:sqrt"}, "arguments: 'math:sqrt'"),
        ({"model": "builtins:dict"}, "expected a torch module from 'builtins:dict', got a dict"),
        ({"features": {}}, "expected one level or more"),
        ({"layout": {"kind": "dense"}}, "expected both or neither"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_detector("hooked", CLASSES, **{"model": Foreign(), "features": FEATURES, **given})


def test_a_model_that_cannot_be_probed_says_so() -> None:
    class Picky(Foreign):
        def forward(self, images: Tensor) -> Tensor:
            raise ValueError("only 320 pixels")

    with pytest.raises(ConfigError, match=r"128 x 128 pixels \(ValueError: only 320 pixels\); give another probe_size"):
        hooked(Picky())
    hooked(Picky(), {"fine": ["backbone", 4, 6]})


def test_the_model_itself_is_a_place() -> None:
    tap = parse_tap("out", ["[maps][0]", 4], Foreign())
    assert (tap.module, tap.keys, tap.place) == ("", ("maps", "0"), "[maps][0]")


# --- torchvision's SSDLite, as its own library builds it ---

SSD: dict[str, Any] = {
    "model": "torchvision.models.detection:ssdlite320_mobilenet_v3_large",
    "arguments": {"weights": None, "weights_backbone": None, "num_classes": 4},
    "features": {"c4": ["backbone[0]", 16], "c5": ["backbone[1]", 32]},
    "probe_size": 320,
}


def ssd_inputs(batch: Batch) -> tuple[Any, ...]:
    targets = [{"boxes": one["boxes"], "labels": one["labels"] + 1} for one in batch.targets or []]
    return list(batch.images), targets or None


def ssd_losses(model: nn.Module, batch: Batch, raw: dict[str, Tensor]) -> dict[str, Tensor]:
    return raw


def ssd_predictions(model: nn.Module, batch: Batch, raw: list[dict[str, Tensor]]) -> list[Detections]:
    return [Detections(one["boxes"], one["scores"], one["labels"] - 1) for one in raw]


@pytest.fixture(scope="module")
def ssd() -> Detector:
    torch.manual_seed(0)
    functions = {"inputs": ssd_inputs, "losses": ssd_losses, "predictions": ssd_predictions}
    return build_detector("hooked", CLASSES, **SSD, **functions)


def test_an_ssdlite_of_torchvision_learns_from_a_retinanet(ssd: Detector, small: Any, batch_of: Any) -> None:
    batch = batch_of([[[20, 20, 200, 180]], [[100, 90, 300, 310], [5, 5, 60, 80]]], (320, 320))
    assert [spec.stride for spec in ssd.info.features.values()] == [16, 32]
    teacher = small("retinanet").eval().requires_grad_(False)
    distiller = Distiller(load_policy("pkd"), student=ssd, teacher=teacher)
    output = ssd.train()(batch)
    assert set(output.losses) == {"bbox_regression", "classification"}
    with torch.no_grad():
        answer = teacher(batch)
    distilled = distiller(output, answer, batch.targets)
    torch.stack([*output.losses.values(), *distilled.values()]).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in ssd.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_its_predictions_are_those_of_the_model(ssd: Detector, batch_of: Any) -> None:
    batch = batch_of([[], []], (320, 320))
    with torch.no_grad():
        found = ssd.eval().predict(batch)
        expected = ssd.get_submodule("model")(list(batch.images))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.boxes, other["boxes"]) and torch.equal(one.labels, other["labels"] - 1)
    reference = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    reference.load_state_dict(ssd.home_state_dict())


# --- from a run configuration ---


def test_a_run_configuration_names_it_by_import_paths(
    tiny_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(__file__).resolve().parents[2] / "examples" / "foreign_detector.py"
    (tmp_path / "a_foreign_module.py").write_text(path.read_text())
    monkeypatch.syspath_prepend(tmp_path)
    student = {
        "model": "a_foreign_module:CenterNet",
        "arguments": {"num_classes": 2, "width": 8},
        "features": {"fine": ["neck", 4], "middle": ["backbone[middle]", 8]},
        "losses": "a_foreign_module:losses",
        "predictions": "a_foreign_module:predictions",
    }
    tiny_run["student"] = {"detector": "hooked", "options": student}
    tiny_run["search"]["knowledge"] = ["global", "fgbg", "instance"]
    plan = make_plan(parse_config(tiny_run))
    assert plan.build_student(0, True).info.features == {"fine": FeatureSpec(16, 4), "middle": FeatureSpec(16, 8)}
    assert set(plan.spaces) == {"global", "fgbg", "instance"}
    sys.modules.pop("a_foreign_module")
