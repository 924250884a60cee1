"""Everything a run needs, resolved and checked before any training."""

from __future__ import annotations

import importlib
import importlib.util
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from detkds.config import DetectorConfig, HalvingConfig, RunConfig, TrainConfig
from detkds.config_file import SchemaError, load_config
from detkds.data.coco import CocoDataset
from detkds.data.digits import NAMES
from detkds.detectors.base import Detector
from detkds.detectors.configured import configured_detector, known_class_names
from detkds.detectors.rescaled import Rescaled
from detkds.distiller import check_pair
from detkds.errors import ConfigError, Faults, UserError
from detkds.policy import Policy, load_policy
from detkds.policy_search.divide_and_conquer import check_sampler
from detkds.policy_search.portfolio import Entry, load_portfolio
from detkds.policy_search.space import Space, load_spaces
from detkds.registry import KNOWLEDGE
from detkds.runs.checks import check_executor, check_halving, check_roles, check_training, proxy_halving, proxy_training
from detkds.runs.datasets import load_data, require_masks, split_data
from detkds.runs.verdict import INHERITED, PLAIN, SEARCHED, TEACHER
from detkds.tasks.content import files_of, setup_digest
from detkds.tasks.task import Task
from detkds.training.digests import data_digest
from detkds.training.setup import TrainingSetup
from detkds.training.student import seeded
from detkds.version import __version__

RIVALS = 4
"""Hand-designed policies beside the searched one, where the configuration does not name them."""

TEACHING, SEARCH, CONFIRMATION, COMPARISON = "teacher", "search", "confirmation", "comparison"
"""The stages of a run, and the names of what their trainings share."""


@dataclass(frozen=True)
class Plan:
    """A checked run.

    Attributes:
        config: as given.
        train_data, test_data: the whole training images, and the images reported on.
        proxy_data, validation_data: parts of the training images that candidates are trained and ranked on.
        teacher: with its weights where they were given; still to be trained where ``teacher_ready`` is False. Where
            students teach themselves, another student, against which losses are checked and scaled.
        spaces: what is searched, by kind of knowledge.
        refused: kinds of knowledge this pair cannot offer, with the reason.
        policies: the hand-designed policies of the final comparison, as far as the configuration says.
        portfolio: what the search knows of hand-designed policies, of those that the pair can serve.
        warm_start: policies that the search begins with.
        halving: stops losing candidates of the search early; None where all are trained to the end.
        inherited: names of the tensors the student takes over from the teacher.
        masks: whether the student predicts masks; AP is then that of masks.
    """

    config: RunConfig
    device: torch.device
    train_data: CocoDataset
    test_data: CocoDataset
    proxy_data: CocoDataset
    validation_data: CocoDataset
    teacher: Detector
    teacher_ready: bool
    spaces: Mapping[str, Space]
    refused: Mapping[str, str]
    policies: Mapping[str, Policy]
    portfolio: tuple[Entry, ...]
    warm_start: tuple[Policy, ...]
    halving: HalvingConfig | None
    inherited: tuple[str, ...]
    masks: bool

    def build_student(self, seed: int, inherit: bool) -> Detector:
        """A fresh student; everything random in it depends on the seed alone."""
        student = make_detector(self.config.student, self.train_data.class_names, seed)
        if inherit and self.config.inherits:
            student.inherit(self.teacher)
        return student

    @cached_property
    def setups(self) -> Mapping[str, TrainingSetup]:
        """What the trainings of each stage share, by the stage's name."""
        config = self.config
        learners = {
            SEARCH: self.setup(self.proxy_data, self.validation_data, self.proxy_config),
            CONFIRMATION: self.setup(self.proxy_data, self.validation_data, config.train),
            COMPARISON: self.setup(self.full_data, self.test_data, config.train),
        }
        if config.teacher.train is None or self.teacher_ready:
            return learners
        teacher = replace(
            self.setup(self.train_data, self.test_data, config.teacher.train),
            teacher=None,
            build_student=self._build_teacher,
            masks=self.teacher.info.masks,
        )
        return {TEACHING: teacher, **learners}

    def setup(self, train: CocoDataset, test: CocoDataset, config: TrainConfig) -> TrainingSetup:
        """What the trainings of students on these images share."""
        return TrainingSetup(
            teacher=self.teacher,
            build_student=self.build_student,
            train_data=train,
            test_data=test,
            config=config,
            size=self.config.data.size,
            device=self.device,
            validation_data=self.validation_data,
            self_taught=self.config.self_taught,
            masks=self.masks,
        )

    def digest_for(self, task: Task) -> str:
        """Of all that a task is made from beside itself; where a teacher has a part in it, it must have its weights."""
        return self.setup_digest(task.setup, alone=task.alone and not self.config.self_taught)

    def setup_digest(self, name: str, *, alone: bool = False) -> str:
        """Of all that the trainings of a stage are made from.

        Args:
            alone: leave the teacher out, for what does not depend on it.
        """
        if (name, alone) not in self._digests:
            setup, config = self.setups[name], self.config
            setup = replace(setup, teacher=None) if alone else setup
            described = config.teacher if name == TEACHING else config.student
            rounded = name == SEARCH and config.proxy.cache.mode != "live"
            self._digests[name, alone] = setup_digest(
                setup, described, (config.proxy.calibration_batches, config.inherits, rounded)
            )
        return self._digests[name, alone]

    @cached_property
    def _digests(self) -> dict[tuple[str, bool], str]:
        return {}

    @cached_property
    def content(self) -> dict[str, str]:
        """Digests of what lies under the configuration's paths, and the package's version."""
        config = self.config
        named = {"data.train": data_digest(self.train_data), "data.test": data_digest(self.test_data)}
        for role, described in (("teacher", config.teacher), ("student", config.student)):
            named |= {f"{role}.{key}": digest for key, digest in files_of(described).items()}
        return {**named, "detkds": __version__}

    @property
    def full_data(self) -> CocoDataset:
        """What the full budget trains on: all training images, but for those that validate it as it goes."""
        if self.config.train.validate_every is None:
            return self.train_data
        held_out = set(self.validation_data.image_ids)
        return self.train_data.subset(image for image in self.train_data.image_ids if image not in held_out)

    def _build_teacher(self, seed: int, inherit: bool) -> Detector:
        return make_teacher(self.config.teacher, self.train_data.class_names, seed, self.config.data.size)

    @property
    def metric(self) -> str:
        """What a search optimises and tables report: AP of the student's masks, or of its boxes where it has none."""
        return "mask AP" if self.masks else "box AP"

    @property
    def proxy_config(self) -> TrainConfig:
        """The training configuration of the proxy."""
        return proxy_training(self.config)


def load_run(path: str | Path, overrides: Iterable[str] = (), fork: str | None = None) -> RunConfig:
    """Read a configuration; where the schema finds faults, look for those in the rest of it too.

    Args:
        fork: the name of a new run, which takes over what is still valid of the run that the configuration names.

    Raises:
        ConfigError: every fault, each with the path of its key.
    """
    overrides = list(overrides)
    if fork is not None:
        parent = load_run(path, overrides).name
        overrides += [f"name={json.dumps(fork)}", f"parent={json.dumps(parent)}"]
    try:
        return load_config(path, overrides)
    except SchemaError as error:
        if error.sound is None:
            raise
        with tempfile.TemporaryDirectory() as scratch:
            try:
                make_plan(error.sound.model_copy(update={"runs": Path(scratch)}))
            except UserError as more:
                raise ConfigError([*error.faults, *more.faults]) from None
        raise


def make_plan(config: RunConfig) -> Plan:
    """Resolve a configuration; where it names a number of threads, torch uses that many from here on.

    Raises:
        UserError: every fault found in it, in the data, the weights, the space and the policies.
    """
    faults = Faults()

    def attempt(function: Any, *args: Any) -> Any:
        try:
            return function(*args)
        except UserError as error:
            faults.add(error)
            return None

    torch.set_num_threads(config.threads)
    attempt(import_plugins, config.plugins)
    device = attempt(choose_device, config.device)
    embedded = config.data.embedded is not None
    data = None if embedded else attempt(load_data, config)
    attempt(check_sampler, config.search.sampler)
    attempt(check_halving, config)
    attempt(check_executor, config)
    attempt(check_training, config)
    spaces = attempt(load_spaces, config.search.space, config.search.weighting, config.search.knowledge)
    loaded = {name: attempt(load_policy, name) for name in config.final.policies or ()}
    first = {name: attempt(load_policy, name) for name in config.search.warm_start}
    names = data[0].class_names if data else NAMES[: config.data.embedded_classes]
    # Its own average says at first what a student says itself; losses are checked and scaled against another student.
    described, seed = (config.student, config.seed + 1) if config.self_taught else (config.teacher, config.seed)
    teacher = attempt(make_teacher, described, names, seed, config.data.size)
    student = attempt(make_detector, config.student, names, config.seed)
    attempt(check_roles, config)
    parts = attempt(split_data, config, data[0]) if data else None
    policies = _named({name: policy for name, policy in loaded.items() if policy is not None})
    if teacher is not None and student is not None:
        for policy in policies.values():
            attempt(check_pair, absolute(policy), student, teacher)
    learners = [student, teacher if config.teacher.weights is None else None]
    if data and any(learner is not None and learner.info.masks for learner in learners):
        attempt(require_masks, data)
    if embedded and not faults:
        data = attempt(load_data, config)  # last, as it writes files
        parts = attempt(split_data, config, data[0]) if data else None
    faults.raise_as(ConfigError)
    assert data is not None and parts is not None and teacher is not None and student is not None
    refused = {
        kind: reason
        for kind in spaces
        if (reason := KNOWLEDGE.build(kind).refusal(student.info, teacher.info)) is not None
    }
    offered = {kind: space for kind, space in spaces.items() if kind not in refused}
    if not offered:
        raise ConfigError([f"this pair offers no {kind}: {reason}" for kind, reason in refused.items()])
    portfolio = servable(load_portfolio(), student, teacher)
    return Plan(
        config=config,
        device=device,
        train_data=data[0],
        test_data=data[1],
        proxy_data=parts[0],
        validation_data=parts[1],
        teacher=teacher.to(device),
        teacher_ready=config.self_taught or config.teacher.weights is not None or teacher.info.layout.kind == "none",
        spaces=offered,
        refused=refused,
        policies=policies if config.final.policies is not None else as_published(portfolio),
        portfolio=portfolio,
        warm_start=tuple(first.values()),
        halving=proxy_halving(config),
        inherited=tuple(student.inherit(teacher)) if config.inherits else (),
        masks=student.info.masks,
    )


def servable(entries: Iterable[Entry], student: Detector, teacher: Detector) -> tuple[Entry, ...]:
    """The entries of a portfolio that a pair can serve."""

    def fits(entry: Entry) -> bool:
        try:
            check_pair(absolute(load_policy(entry.policy)), student, teacher)
        except UserError:
            return False
        return True

    return tuple(entry for entry in entries if fits(entry))


def as_published(portfolio: Sequence[Entry]) -> dict[str, Policy]:
    """The first hand-designed policies of a portfolio, as they were published."""
    names = list(dict.fromkeys(entry.policy for entry in portfolio))
    return {name: load_policy(name) for name in names[:RIVALS]}


def _named(policies: Mapping[str, Policy]) -> dict[str, Policy]:
    """The policies by their own names, or by what they were asked for by where the name is not theirs alone."""
    count = Counter((TEACHER, PLAIN, INHERITED, SEARCHED, *(policy.name for policy in policies.values())))
    return {
        policy.name if count[policy.name] == 1 and policy.name else given: policy for given, policy in policies.items()
    }


def absolute(policy: Policy) -> Policy:
    """The policy with its weights read as absolute ones, for checks that do not depend on them."""
    return replace(policy, terms=[replace(term, weighting="absolute") for term in policy])


def make_detector(config: DetectorConfig, class_names: tuple[str, ...], seed: int) -> Detector:
    """Build a detector from its configuration, initial weights drawn from ``seed``, and load its weights.

    Raises:
        UserError: unknown detector, backbone or option, or weights that do not fit.
    """
    with seeded(seed, torch.device("cpu")):
        return configured_detector(config, class_names)


def make_teacher(config: DetectorConfig, class_names: tuple[str, ...], seed: int, size: int) -> Detector:
    """Build a teacher for images whose longer side has ``size`` pixels; it may be given larger or smaller ones.

    Where neither the configuration nor the file of its weights names classes, they are ``class_names``.

    Raises:
        UserError: as :func:`make_detector`.
    """
    teacher = make_detector(config, known_class_names(config) or class_names, seed)
    return teacher if config.size in (None, size) else Rescaled(teacher, config.size / size)


def choose_device(name: str | None) -> torch.device:
    """The named device, or the first accelerator, or the CPU.

    Raises:
        ConfigError: the device is unknown or not there.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device: {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def import_plugins(names: Iterable[str]) -> None:
    """Import modules that register pieces.

    Raises:
        ConfigError: naming all that cannot be imported.
    """
    faults = Faults("plugins")
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            faults.add(f"{name!r} cannot be imported: {error}")
    faults.raise_as(ConfigError)
