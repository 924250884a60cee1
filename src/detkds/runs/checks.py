"""What the fields of a configuration need of one another, beyond what its schema says."""

from __future__ import annotations

import importlib.util

from detkds.config import HalvingConfig, RunConfig, TrainConfig
from detkds.errors import ConfigError, Faults
from detkds.policy_search.halving import check_rungs

FEATURES = "features"
"""The detector that is a body alone: it has its own weights, and predicts nothing."""

LEAST_PASSES = 4
"""Of the full budget, for losing candidates to be stopped where the configuration does not say how."""

PROXY_SHARE = 6
"""The full budget's passes for each of the proxy's, where the configuration does not say them."""


def check_roles(config: RunConfig) -> None:
    """What only a teacher may have, and what it may not have together.

    Raises:
        ConfigError: listing every fault.
    """
    faults = Faults()
    if config.parent is not None and not (config.runs / config.parent).is_dir():
        faults.add(f"parent: expected a run to take results over from, found no folder {config.runs / config.parent}")
    for key in ("classes", "size"):
        if getattr(config.student, key) is not None:
            faults.add(f"student: {key}: a student has those of the data; leave it out")
    if config.self_taught:
        given = [key for key, value in config.teacher if key != "detector" and value not in (None, {}, False)]
        if given:
            faults.add(f"teacher: the detector 'self' is the student's average and takes no {', '.join(given)}")
        if config.train.ema is None:
            faults.add("train.ema: a student that teaches itself needs the decay of its moving average, such as 0.99")
    elif config.teacher.weights is None and config.teacher.train is None and config.teacher.detector != FEATURES:
        faults.add("teacher: expected weights (a file or URL), or train: how to train it first; got neither")
    if config.teacher.weights is None and config.teacher.classes is not None:
        faults.add("teacher: classes: a teacher that is trained first learns the classes of the data; leave it out")
    faults.raise_as(ConfigError)


def check_halving(config: RunConfig) -> None:
    """Make sure that losing candidates stop before the proxy's training ends.

    Raises:
        ConfigError: they do not.
    """
    halving = proxy_halving(config)
    if halving is not None:
        check_rungs(halving.rungs, proxy_training(config).epochs)


def check_training(config: RunConfig) -> None:
    """What fields of a training need of one another.

    Raises:
        ConfigError: listing every fault.
    """
    faults = Faults()
    for name, train in (("train", config.train), ("teacher.train", config.teacher.train)):
        if train is not None and train.keep == "best" and train.validate_every is None:
            faults.add(f"{name}.keep: best needs {name}.validate_every, the passes between two measurements")
    faults.raise_as(ConfigError)


def check_executor(config: RunConfig) -> None:
    """Find out before anything runs whether the executor can be had.

    Raises:
        ConfigError: listing every fault.
    """
    if config.executor == "ray" and importlib.util.find_spec("ray") is None:
        raise ConfigError("executor: ray is not installed; install it with: pip install 'detkds[ray]'")


def proxy_training(config: RunConfig) -> TrainConfig:
    """The training configuration of the proxy."""
    proxy, full = config.proxy, config.train
    epochs = full.epochs if _stops_by_default(config) else proxy.epochs or max(1, full.epochs // PROXY_SHARE)
    return full.model_copy(update={"epochs": epochs, "draws": proxy.draws or full.draws})


def proxy_halving(config: RunConfig) -> HalvingConfig | None:
    """How losing candidates of the search are stopped; None where all are trained to the end."""
    epochs = config.train.epochs
    return HalvingConfig(rungs=(epochs // 4, epochs // 2)) if _stops_by_default(config) else config.proxy.halving


def _stops_by_default(config: RunConfig) -> bool:
    """Whether candidates are trained like the full budget, and losing ones stop."""
    proxy, enough = config.proxy, config.train.epochs >= LEAST_PASSES
    return config.search.method == "policies" and proxy.halving is None and proxy.epochs is None and enough
