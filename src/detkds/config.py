"""The schema of run configurations: every knob once, with its bounds and with what changing it means.

A field is made by :func:`numbers`, :func:`budget` or :func:`speed`, which say what a change of it means for a run that
has begun: another experiment, more or less of the same, or nothing.
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Effect = Literal["numbers", "budget", "speed"]
"""What a change means for a run that has begun; see the module's docstring."""


def numbers(default: Any = ..., **bounds: Any) -> Any:
    """A field whose change is another experiment: a run that has begun refuses it."""
    return Field(default, json_schema_extra={"effect": "numbers"}, **bounds)


def budget(default: Any = ..., **bounds: Any) -> Any:
    """A field that says how much is done: a run that has begun does more, or uses the first part of what there is."""
    return Field(default, json_schema_extra={"effect": "budget"}, **bounds)


def speed(default: Any = ..., **bounds: Any) -> Any:
    """A field that changes no result: a run that has begun takes it as it comes."""
    return Field(default, json_schema_extra={"effect": "speed"}, **bounds)


class Section(BaseModel):
    """A part of a configuration: unknown keys and non-finite numbers are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class SplitConfig(Section):
    """One set of images. Where they lie changes nothing; what they are is compared by content."""

    annotations: Path = speed()
    """A COCO annotation file, a ``data.yaml`` of YOLO or a VOC folder."""
    images: Path | None = speed(None)
    """The folder that the file names of a COCO file are relative to; for VOC null: ``JPEGImages`` beside
    ``Annotations``."""
    split: str | None = numbers(None)
    """Which split of a ``data.yaml`` or of VOC's ``ImageSets`` is meant; null: ``train`` for training images, ``test``
    or else ``val`` for test images."""


class DataConfig(Section):
    """Where the images are, and the size they are resized to."""

    train: SplitConfig | tuple[SplitConfig, ...] | None = numbers(None)
    """Training images, one set or a list of several; validation images are cut from them."""
    test: SplitConfig | None = numbers(None)
    """Test images: reported on, never searched on."""
    embedded: Literal["digits"] | None = numbers(None)
    """``digits`` makes the embedded set in the run folder instead of reading ``train`` and ``test``."""
    embedded_images: tuple[Count, Count] = numbers((300, 150))
    """Training and test images of the embedded set."""
    embedded_classes: int = numbers(10, ge=1, le=10)
    """Classes of the embedded set."""
    size: int = numbers(800, ge=32, le=16384)
    """Pixels of the longer side of the images."""
    degenerate: Literal["fail", "skip"] = numbers("fail")
    """What is done with boxes without area inside their image: name them as faults, or leave them out of training."""


class AugmentationConfig(Section):
    """Amounts of the random changes of a training image; 0 switches one off."""

    flip: Probability = numbers(0.5)
    """Probability of a left-right flip."""
    scale: tuple[Positive, Positive] = numbers((1.0, 1.0))
    """Smallest and largest size factor, drawn uniformly. Below 1 the image shrinks (and is padded in the batch)."""
    crop: bool = numbers(False)
    """Whether a factor above 1 cuts a random window of 1/factor of each side and enlarges it to the unscaled size
    (large-scale jitter; Ghiasi et al. 2021, section 3.1); without it the whole image grows."""
    brightness: Probability = numbers(0.0)
    """The factor is drawn from [1 - amount, 1 + amount]."""
    contrast: Probability = numbers(0.0)
    """Likewise."""
    saturation: Probability = numbers(0.0)
    """Likewise."""
    hue: float = numbers(0.0, ge=0, le=0.5)
    """The shift is drawn from [-amount, amount], in turns of the color circle."""

    @field_validator("scale")
    @classmethod
    def _ascends(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[0] > scale[1]:
            raise ValueError("expected two numbers 0 < low <= high")
        return scale


class TrainConfig(Section):
    """How one detector is trained."""

    epochs: Count = numbers(12)
    """Passes; one pass is ``draws`` image draws."""
    draws: Count | None = numbers(None)
    """Image draws of a pass; null: every image once."""
    batch_size: int = numbers(16, ge=1, le=65536)
    """Images of a step."""
    optimizer: Literal["sgd", "adamw"] = numbers("sgd")
    """The optimizer."""
    lr: Positive = numbers(0.01, le=1e3)
    """Learning rate after warm-up."""
    momentum: Probability = numbers(0.9)
    """Momentum of SGD, first beta of AdamW."""
    weight_decay: NonNegative = numbers(1e-4)
    """Weight decay of matrices; vectors have none."""
    warmup_steps: int = numbers(500, ge=0)
    """Steps of linear warm-up, at most half of the training."""
    schedule: Literal["cosine", "step"] = numbers("cosine")
    """Learning rate after warm-up: ``cosine`` to 0, or ``step``: times ``step_factor`` at each milestone."""
    milestones: tuple[Probability, ...] = numbers((2 / 3, 11 / 12))
    """Fractions of the training at which ``step`` lowers the learning rate."""
    step_factor: Positive = numbers(0.1)
    """Factor of the learning rate at a milestone."""
    clip_norm: Positive | None = numbers(35.0)
    """Limit of the gradient's norm over student and adapters; null for none."""
    ema: Probability | None = numbers(None)
    """Decay of a moving average of the weights that is then evaluated and saved; null for none."""
    amp: Literal["bf16", "fp16"] | None = numbers(None)
    """Autocast; null for full precision."""
    channels_last: bool = numbers(False)
    """Memory format of the students."""
    validate_every: Count | None = numbers(None)
    """Passes between measurements of AP on the validation images, which are then held out of every training;
    null: none."""
    keep: Literal["last", "best"] = numbers("last")
    """Which weights are measured, saved and shipped: those after the last pass, or of the best validation AP, which
    needs ``validate_every``. The test images have no say in it."""
    workers: int = speed(0, ge=0, le=256)
    """Loader processes; 0 loads in the training process."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """How training images vary."""


class DetectorConfig(Section):
    """A detector: its registered name, its options, and where its weights come from."""

    detector: str = numbers()
    """A registered detector, such as ``retinanet``; for a teacher also ``self``: every student is taught by the moving
    average of its own weights (``train.ema``; Mean Teacher, Tarvainen and Valpola 2017)."""
    backbone: str | None = numbers(None)
    """A named backbone or any timm model that gives feature maps; null: the detector's own."""
    classes: tuple[str, ...] | None = numbers(None)
    """Names of the classes a teacher knows, in label order; null: those that its weights say, or else those of the
    data."""
    synonyms: dict[str, str] = numbers({})
    """The data's names for classes that a teacher knows by other names: ``{motorbike: motorcycle}``."""
    size: Count | None = numbers(None)
    """Pixels of the longer side of the images a teacher is given; null: those of the data."""
    backbone_weights: Literal["pretrained"] | None = numbers(None)
    """``pretrained`` for the backbone library's own weights; null for random ones."""
    options: dict[str, Any] = numbers({})
    """Further arguments of the detector."""
    weights: str | None = speed(None)
    """The whole detector's weights: a local file or URL, ``torchvision/NAME`` for a published detector of torchvision,
    or a ``save_pretrained`` folder or hub name for one of the transformers library. Where they lie changes nothing;
    what they hold is compared by content."""
    trust: bool = speed(False)
    """Also read weights from a file that holds other objects than tensors and plain values, which can run any code."""
    partial: bool = numbers(False)
    """Load what of the weights fits and start the rest afresh, such as the head of another set of classes."""
    train: TrainConfig | None = None
    """How a teacher without weights is trained first."""


class CacheConfig(Section):
    """Whether the populations of a search share the teacher's outputs through the disk."""

    mode: Literal["auto", "live", "cached"] = numbers("auto")
    """``auto`` keeps them, rounded to half precision, where measured times say that reading is cheaper; ``cached``
    keeps them wherever there is room; ``live`` runs the teacher on every batch and rounds nothing."""
    disk_gb: Positive = speed(4.0)
    """10^9 bytes that they may take of the run folder's disk; at most half of what is free is taken."""


class HalvingConfig(Section):
    """Successive halving: losing candidates stop before the proxy's training is over."""

    rungs: Annotated[tuple[Count, ...], Field(min_length=1)] = numbers()
    """Epochs of the proxy after which AP is measured, ascending and below ``proxy.epochs``."""
    eta: int = numbers(3, ge=2)
    """The best of every ``eta`` candidates of a kind of knowledge go on."""
    brackets: Count = numbers(1)
    """1, or up to one more than there are rungs: shares of the candidates that are judged later (Hyperband)."""

    @field_validator("rungs")
    @classmethod
    def _ascend(cls, rungs: tuple[int, ...]) -> tuple[int, ...]:
        if list(rungs) != sorted(set(rungs)):
            raise ValueError("expected epochs in ascending order")
        return rungs

    @field_validator("brackets")
    @classmethod
    def _fit_the_rungs(cls, brackets: int, others: ValidationInfo) -> int:
        most = len(others.data.get("rungs", ())) + 1
        if "rungs" in others.data and brackets > most:
            raise ValueError(f"expected at most {most}, one more than there are rungs")
        return brackets


class ProxyConfig(Section):
    """The cheap training on which candidates are ranked; what is not said here is taken from ``train``."""

    images: Count | None = numbers(None)
    """Training images, chosen class- and size-balanced; null: all that validation leaves."""
    validation: float = numbers(0.25, gt=0, lt=1)
    """Fraction of the *training* images that candidates are validated on."""
    epochs: Count | None = numbers(None)
    """Passes; without ``halving`` all candidates are trained to the end. null: the method ``policies`` trains
    candidates like the full budget, stops the losing ones after a quarter and a half of it, and lets the best third go
    on; where the full budget has fewer than 4 passes, and for the other methods, it is a sixth of them, at least 1."""
    draws: Count | None = numbers(None)
    """Image draws of a pass; null: those of the full budget, or every image once."""
    calibration_batches: int = numbers(4, ge=1, le=1024)
    """Batches on which losses are filtered and relative weights are measured."""
    population: int = speed(8, ge=1, le=1024)
    """Students trained side by side on shared batches and teacher outputs."""
    cache: CacheConfig = CacheConfig()
    """Of the teacher's outputs, between populations."""
    halving: HalvingConfig | None = numbers(None)
    """Stops losing candidates early; null: see ``epochs``."""


class SearchConfig(Section):
    """The search over policies."""

    method: Literal["policies", "divide", "joint"] = numbers("policies")
    """``policies``: whole policies, first those of the portfolio, then changes of the best so far. ``divide``: the
    paper's two stages, single terms of each kind of knowledge and then their weights. ``joint``: all kinds at once in
    one undivided space, with the trainings of both stages."""
    candidates: Count = budget(16)
    """Candidate trainings of the method ``policies``."""
    portfolio: Count = numbers(8)
    """How many of the portfolio's policies, of those that the pair can serve, the method ``policies`` begins with."""
    space: str = numbers("default")
    """What new terms are made from: ``default``, ``rows``, ``extended``, ``paper``, or the path of a space file."""
    weighting: Literal["absolute", "gradient"] = numbers("gradient")
    """What weights mean in the space: absolute (the paper), or ratios to the task's gradient."""
    knowledge: tuple[str, ...] = numbers(("global", "fgbg", "instance", "logits", "localization"))
    """The kinds to search; kinds the pair cannot offer are left out with a reason."""
    sampler: str = numbers("evolution")
    """Of ``divide`` and ``joint``: a registered sampler, with arguments as in ``mcts(c=1.41, amaf=false)``."""
    single_budget: Count = budget(20)
    """Candidate trainings for each kind of knowledge, of ``divide`` and ``joint``."""
    combination_budget: int = budget(40, ge=0, le=10**9)
    """Candidate trainings for the combination of kinds, of ``divide`` and ``joint``; 0 combines nothing."""
    filter: bool = numbers(True)
    """Whether candidates whose loss is no use (not finite, too large, without gradient) are refused before training."""
    parallel: int = speed(1, ge=1, le=4096)
    """Iterations of one study that are measured side by side. The more, the fuller populations are; the fewer, the
    more each proposal has seen. Candidates measured from here on may be others."""
    population: int = numbers(8, ge=2)
    """P of Algorithm 1, the members kept."""
    sample_ratio: float = numbers(0.9, gt=0, le=1)
    """r of Algorithm 1, the fraction of members that parents may be chosen from."""
    parents: Count = numbers(3)
    """k of Algorithm 1, the best of that sample, one of which is mutated."""
    newcomer: str = numbers("never", pattern=r"^(never|always|every:0*[1-9][0-9]*)$")
    """When a random newcomer is evaluated beside the mutant: ``never``, ``always`` or ``every:4``."""
    warm_start: tuple[str, ...] = numbers(())
    """Policies whose terms join the initial populations, each with the weight nearest to its own."""
    race: tuple[Count, ...] = budget((2,))
    """How many of the best candidates are trained at the full budget, on the proxy's images, in each round, one seed a
    round; the best hand-designed one is among them. The best of the last round is chosen; ``[]`` takes the proxy's
    word."""
    storage: str | None = speed(None)
    """URL of an Optuna storage; null keeps the trials in the run folder."""
    seed: Seed = numbers(0)
    """Of the candidates' initial weights and data order, of the split of the training images, and of proposals."""

    budget: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?x$")] | None = budget(None)
    """What ``policies`` may cost with its race, in full trainings: ``6x``. It sets ``candidates`` and ``race``."""

    @field_validator("race")
    @classmethod
    def _narrows(cls, race: tuple[int, ...]) -> tuple[int, ...]:
        if list(race) != sorted(race, reverse=True):
            raise ValueError("expected rounds of no more candidates than the round before")
        return race

    def trainings(self, kinds: int) -> int:
        """Candidate trainings of a whole search; with one kind of knowledge there is nothing to combine."""
        if self.method == "policies":
            return self.candidates
        return self.single_budget * kinds + (self.combination_budget if kinds > 1 else 0)

    def has_newcomer(self, iteration: int) -> bool:
        """Whether iteration ``iteration`` (from 0) evaluates a random newcomer as well."""
        kind, _, period = self.newcomer.partition(":")
        return kind == "always" or (kind == "every" and (iteration + 1) % int(period) == 0)


class FinalConfig(Section):
    """The comparison at the full budget on the test images."""

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = budget(None)
    """One training per policy and seed. null (or ``auto``) after a search: 5 seeds for the plain student, the searched
    policy and the hand-designed one that validation chose, 8 where their difference is still open then, and 2 for the
    others; without a search 5 for all."""
    policies: tuple[str, ...] | None = budget(None)
    """Hand-designed policies to stand beside the searched one; null: those of the portfolio that did best in the
    search, or without a search its first."""
    top: Count = budget(1)
    """How many of the search's best policies are retrained."""

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if seeds is not None and len(set(seeds)) < len(seeds):
            raise ValueError("expected seeds that differ, as each is one training")
        return seeds

    @field_validator("seeds", mode="before")
    @classmethod
    def _automatic(cls, seeds: Any) -> Any:
        return None if seeds == "auto" else seeds

    @property
    def first_seeds(self) -> tuple[int, ...]:
        """The seeds of the policies that matter most, before more are asked for."""
        return tuple(range(5)) if self.seeds is None else self.seeds


class RunConfig(Section):
    """A whole run: data, pair, training, proxy, search and comparison; kept in the folder ``runs/name``."""

    name: str = speed()
    """The folder's name inside ``runs``."""
    parent: str | None = speed(None)
    """Another run in ``runs`` whose results are used wherever they are still valid (``--fork``)."""
    data: DataConfig
    """The images."""
    teacher: DetectorConfig
    """The detector that teaches."""
    student: DetectorConfig
    """The detector that learns."""
    inherit: bool = numbers(True)
    """Whether students start from the teacher's neck and head."""
    train: TrainConfig = TrainConfig()
    """The full budget of a student."""
    proxy: ProxyConfig = ProxyConfig()
    """The cheap budget of a candidate."""
    search: SearchConfig = SearchConfig()
    """How policies are searched."""
    final: FinalConfig = FinalConfig()
    """How they are compared."""
    seed: Seed = numbers(0)
    """Of the teacher and the embedded data."""
    executor: Literal["auto", "inline", "processes", "ray"] = speed("auto")
    """Who trains: ``inline``, this process; ``processes``, workers on this machine, one per GPU or CPU core; ``ray``,
    workers on this machine or on the Ray cluster at ``RAY_ADDRESS``; ``auto``: processes where more than one has a
    device of its own, else this process."""
    workers: Annotated[int, Field(ge=1, le=4096)] | None = speed(None)
    """How many workers; null: one per GPU, or without GPUs one per ``threads`` CPU cores."""
    device: str | None = speed(None)
    """The device of torch; null: GPUs where there are any."""
    threads: Annotated[int, Field(ge=1, le=1024)] = speed(1)
    """CPU threads of torch in each worker; small networks are fastest with one. Another number changes the rounding."""
    runs: Path = speed(Path("runs"))
    """Where run folders are kept."""
    plugins: tuple[str, ...] = speed(())
    """Modules to import first, which register further pieces."""

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
