"""``detkds evaluate``: the student or the teacher with the weights of a file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

from detkds.config import RunConfig
from detkds.detectors.weights import load_weights, stored_class_names
from detkds.runs.datasets import load_data
from detkds.runs.plan import choose_device, import_plugins, make_teacher
from detkds.training.setup import TrainingSetup


def run_evaluate(
    config: RunConfig, weights: Path, which: Literal["student", "teacher"], split: Literal["test", "train"]
) -> dict[str, Any]:
    """Metrics (fractions) of a detector of this run with the weights of a file.

    Raises:
        UserError: every fault in the data, the detector and the weights.
    """
    import_plugins(config.plugins)
    device = choose_device(config.device)
    bare = {"weights": None, "backbone_weights": None}
    described = (config.student if which == "student" else config.teacher).model_copy(update=bare)
    with tempfile.TemporaryDirectory(prefix="detkds-") as scratch:
        if config.data.embedded is not None and not (config.folder / "data").exists():
            config = config.model_copy(update={"runs": Path(scratch)})
        train, test = load_data(config)
        known = stored_class_names(weights) if which == "teacher" else None
        detector = make_teacher(described, known or train.class_names, config.seed, config.data.size)
        load_weights(detector, weights)
        detector.to(device)
        data = test if split == "test" else train
        setup = TrainingSetup(
            None,
            lambda seed, inherit: detector,
            data,
            data,
            config.train,
            config.data.size,
            device,
            masks=detector.info.masks,
        )
        return setup.measure(detector).to_dict()
