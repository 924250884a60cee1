"""``detkds evaluate``: the student or the teacher with the weights of a file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

from detkds.config import RunConfig
from detkds.runs.datasets import load_data
from detkds.runs.plan import choose_device, import_plugins, make_detector, make_teacher
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
    given = {"weights": str(weights), "backbone_weights": None}
    described = (config.student if which == "student" else config.teacher).model_copy(update=given)
    with tempfile.TemporaryDirectory(prefix="detkds-") as scratch:
        if config.data.embedded is not None and not (config.folder / "data").exists():
            config = config.model_copy(update={"runs": Path(scratch)})
        train, test = load_data(config)
        if which == "teacher":
            detector = make_teacher(described, train.class_names, config.seed, config.data.size)
        else:
            detector = make_detector(described, train.class_names, config.seed)
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
