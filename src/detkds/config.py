"""Run configurations: a YAML file checked as a whole before anything runs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from detkds.errors import ConfigError, Faults, unknown_name

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of a configuration: unknown keys and non-finite numbers are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SplitConfig(Section):
    """One set of images: a COCO annotation file and the folder its file names are relative to."""

    annotations: Path
    images: Path


class DataConfig(Section):
    """Where the images are, and the pixels of the longer side they are resized to.

    ``embedded: digits`` makes the embedded set in the run folder instead of reading ``train`` and ``test``, with
    ``embedded_images`` training and test images. The test images are reported on and never searched on.
    """

    train: SplitConfig | None = None
    test: SplitConfig | None = None
    embedded: Literal["digits"] | None = None
    embedded_images: tuple[Count, Count] = (300, 150)
    embedded_classes: Annotated[int, Field(ge=1, le=10)] = 10
    size: Annotated[int, Field(ge=32)] = 800


class AugmentationConfig(Section):
    """Amounts of the random changes of a training image; 0 switches one off."""

    flip: Probability = 0.5
    scale: tuple[Positive, Positive] = (1.0, 1.0)
    crop: bool = False
    brightness: Probability = 0.0
    contrast: Probability = 0.0
    saturation: Probability = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


class TrainConfig(Section):
    """How one detector is trained.

    Attributes:
        epochs: passes; one pass is ``draws`` image draws (default: every image once).
        schedule: ``cosine`` to 0, or ``step``: times ``step_factor`` at each of ``milestones`` (fractions of training).
        clip_norm: gradient norm limit over student and adapters; null for none.
        ema: decay of a moving average of the weights that is then evaluated and saved; null for none.
        amp: ``bf16`` or ``fp16`` autocast; null for full precision.
        workers: loader processes; 0 loads in the training process.
    """

    epochs: Count = 12
    draws: Count | None = None
    batch_size: Count = 16
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.01
    momentum: Probability = 0.9
    weight_decay: NonNegative = 1e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 500
    schedule: Literal["cosine", "step"] = "cosine"
    milestones: tuple[Probability, ...] = (2 / 3, 11 / 12)
    step_factor: Positive = 0.1
    clip_norm: Positive | None = 35.0
    ema: Probability | None = None
    amp: Literal["bf16", "fp16"] | None = None
    channels_last: bool = False
    workers: Annotated[int, Field(ge=0)] = 0
    augmentation: AugmentationConfig = AugmentationConfig()


class DetectorConfig(Section):
    """A detector: its registered name, its options, and where its weights come from.

    Attributes:
        detector: a registered detector, such as ``retinanet``; for a teacher also ``self``: every student is taught by
            the moving average of its own weights (``train.ema``; Mean Teacher, Tarvainen and Valpola 2017).
        backbone: a named backbone or any timm model that gives feature maps; null: the detector's own.
        classes: names of the classes a teacher knows, in label order; null: those in the file of its weights, where
            this package wrote it, or else those of the data.
        size: pixels of the longer side of the images it is given (a teacher only); null: those of the data.
        backbone_weights: ``pretrained`` for the backbone library's own weights; null for random ones.
        options: further arguments of the detector.
        weights: a local file or URL with the whole detector's weights.
        train: how to train it first where it has no weights (a teacher only); null: weights are required.
    """

    detector: str
    backbone: str | None = None
    classes: tuple[str, ...] | None = None
    size: Count | None = None
    backbone_weights: Literal["pretrained"] | None = None
    options: dict[str, Any] = {}
    weights: str | None = None
    train: TrainConfig | None = None


class CacheConfig(Section):
    """Whether the populations of a search share the teacher's outputs through the disk; a matter of speed alone.

    Attributes:
        mode: ``auto`` keeps them, rounded to half precision, where measured times say that reading is cheaper;
            ``cached`` keeps them wherever there is room; ``live`` runs the teacher on every batch and rounds nothing.
        disk_gb: 10^9 bytes that they may take of the run folder's disk; at most half of what is free is taken.
    """

    mode: Literal["auto", "live", "cached"] = "auto"
    disk_gb: Positive = 4.0


class HalvingConfig(Section):
    """Successive halving: losing candidates stop before the proxy's training is over.

    Attributes:
        rungs: epochs of the proxy after which AP is measured, ascending and below ``proxy.epochs``.
        eta: the best of every ``eta`` candidates of a kind of knowledge go on.
        brackets: 1, or up to one more than there are rungs: shares of the candidates that are judged later (Hyperband).
    """

    rungs: Annotated[tuple[Count, ...], Field(min_length=1)]
    eta: Annotated[int, Field(ge=2)] = 3
    brackets: Count = 1


class ProxyConfig(Section):
    """The cheap training on which candidates are ranked.

    Attributes:
        images: how many training images, chosen class- and size-balanced; null: all that validation leaves.
        validation: fraction of the *training* images that candidates are validated on.
        epochs, draws: as in training; everything else is taken from ``train``.
        calibration_batches: batches on which losses are filtered and relative weights are measured.
        population: candidates trained side by side on shared batches and teacher outputs.
        cache: of the teacher's outputs between populations.
        halving: stops losing candidates early; null trains all to the end.
    """

    images: Count | None = None
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.25
    epochs: Count = 1
    draws: Count | None = None
    calibration_batches: Count = 4
    population: Count = 8
    cache: CacheConfig = CacheConfig()
    halving: HalvingConfig | None = None


class SearchConfig(Section):
    """The search over policies.

    Attributes:
        space: ``default``, ``rows``, ``extended``, ``paper``, or the path of a space file.
        weighting: what weights mean in the space: absolute (the paper), or ratios to the task's gradient.
        knowledge: the kinds to search; kinds the pair cannot offer are left out with a reason.
        sampler: a registered sampler for the single-knowledge stage, with arguments as in ``mcts(c=1.41, amaf=false)``.
        single_budget: candidate trainings per kind of knowledge; combination_budget: for the combination stage.
        divide: whether kinds are searched one by one before they are combined; false searches all in one joint space,
            with the trainings of both stages. filter: whether candidates whose loss is no use (not finite, too large,
            without gradient) are refused before training; false trains them. Both are what the method is compared with.
        parallel: iterations of one study that are measured side by side. The more, the fuller populations are and the
            more company halving has; the fewer, the more each proposal has seen.
        parents: the k of Algorithm 1; newcomer: when a random newcomer is evaluated beside the mutant.
        warm_start: policies whose terms join the initial populations, each with the weight nearest to its own.
        confirm: how many of the best candidates are trained again before one is chosen: at the full budget, on the
            proxy's images, with ``confirm_seeds`` other seeds each; 0 takes the proxy's word.
        evaluator: ``population`` trains candidates in this process; ``ray`` in several, one per device, on this machine
            or on the Ray cluster at ``RAY_ADDRESS``.
        workers: how many for ``ray``; null: one per GPU, or without GPUs one per ``threads`` CPUs.
    """

    space: str = "default"
    weighting: Literal["absolute", "gradient"] = "gradient"
    knowledge: tuple[str, ...] = ("global", "fgbg", "instance", "logits", "localization")
    sampler: str = "evolution"
    single_budget: Count = 20
    combination_budget: Count = 40
    divide: bool = True
    filter: bool = True
    parallel: Count = 1
    population: Annotated[int, Field(ge=2)] = 8
    sample_ratio: Annotated[float, Field(gt=0, le=1)] = 0.9
    parents: Count = 3
    newcomer: str = "never"
    warm_start: tuple[str, ...] = ()
    confirm: Annotated[int, Field(ge=0)] = 4
    confirm_seeds: Count = 2
    storage: str | None = None
    evaluator: Literal["population", "ray"] = "population"
    workers: Count | None = None
    seed: int = 0


class FinalConfig(Section):
    """The comparison at the full budget.

    Attributes:
        seeds: one training per policy and seed; at least 3 for a claim.
        policies: hand-designed policies to stand beside the searched one.
        top: how many of the search's best policies are retrained.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    policies: tuple[str, ...] = ("fitnets", "pkd", "cwd", "skd", "detkds/global")
    top: Count = 1


class RunConfig(Section):
    """A whole run: data, pair, training, proxy, search and final comparison; kept in the folder ``runs/name``.

    ``threads`` is how many threads torch uses on the CPU; null leaves it to torch. Small networks are fastest with one.
    """

    name: str
    data: DataConfig
    teacher: DetectorConfig
    student: DetectorConfig
    inherit: bool = True
    train: TrainConfig = TrainConfig()
    proxy: ProxyConfig = ProxyConfig()
    search: SearchConfig = SearchConfig()
    final: FinalConfig = FinalConfig()
    seed: int = 0
    device: str | None = None
    threads: Count | None = None
    runs: Path = Path("runs")
    plugins: tuple[str, ...] = ()

    @field_validator("name")
    @classmethod
    def _stays_inside(cls, name: str) -> str:
        path = PurePath(name)
        if not path.parts or path.is_absolute() or ".." in path.parts:
            raise ValueError("expected the name of a folder inside runs")
        return name

    @property
    def self_taught(self) -> bool:
        """Whether every student is its own teacher."""
        return self.teacher.detector == "self"

    @property
    def inherits(self) -> bool:
        """Whether students start from the teacher's neck and head."""
        return self.inherit and not self.self_taught

    @property
    def folder(self) -> Path:
        """Where everything of this run is kept."""
        return self.runs / self.name


class SchemaError(ConfigError):
    """Faults found by the schema; ``sound`` is the rest, with defaults in their place, where that is possible."""

    def __init__(self, faults: Iterable[str], sound: RunConfig | None = None) -> None:
        super().__init__(faults)
        self.sound = sound


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a configuration file and apply ``key.sub=value`` overrides, whose values are YAML.

    Relative data paths are taken from the working folder.

    Raises:
        ConfigError: listing every fault.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a configuration: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping with the keys {', '.join(RunConfig.model_fields)}")
    return parse_config(apply_overrides(data, overrides), str(path))


def parse_config(data: Mapping[str, Any], where: str = "configuration") -> RunConfig:
    """Check plain data against the schema.

    Raises:
        ConfigError: listing every fault, each with the path of its key.
    """
    try:
        return RunConfig.model_validate(dict(data))
    except ValidationError as error:
        raise SchemaError(_lines(error, where), _without_faults(data, error)) from None


def apply_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Set ``a.b=value`` in nested plain data, without changing ``data``.

    Raises:
        ConfigError: an override is not ``key=value``, its value is not YAML, or its key leads through a plain value.
    """
    result = yaml.safe_load(yaml.safe_dump(dict(data)))
    faults = Faults("override")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            faults.add(f"expected key=value, such as train.lr=0.02, got {override!r}")
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            faults.add(f"{override!r}: the value is not YAML: {' '.join(str(error).split())}")
            continue
        node, *path = result, *key.split(".")
        for part in path[:-1]:
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
            if not isinstance(node, dict):
                faults.add(f"{override!r}: {part!r} is a plain value and has no keys")
                break
        else:
            node[path[-1]] = value
    faults.raise_as(ConfigError)
    return result


def _lines(error: ValidationError, where: str) -> list[str]:
    lines = []
    for fault in error.errors():
        path = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            lines.append(f"{where}: {path}: {unknown_name('key', fault['loc'][-1], _known_keys(fault['loc'][:-1]))}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            message = message[0].lower() + message[1:]
            got = "" if fault["type"] == "missing" else f", got {fault['input']!r}"
            lines.append(f"{where}: {path}: {message}{got}")
    return lines


def _without_faults(data: Mapping[str, Any], error: ValidationError) -> RunConfig | None:
    rest = copy.deepcopy(dict(data))
    for fault in error.errors():
        node: Any = rest
        for part in fault["loc"][:-1]:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.pop(fault["loc"][-1], None)
    try:
        return RunConfig.model_validate(rest)
    except ValidationError:
        return None


def _known_keys(path: Iterable[Any]) -> list[str]:
    model: Any = RunConfig
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return []
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
    return list(getattr(model, "model_fields", {}))
