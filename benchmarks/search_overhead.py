"""What a search itself costs: synthetic evaluations through a study whose journal is on disk.

The evaluator answers at once, so all of the time is proposing, storing and reading. Wall time holds the waiting for the
disk; processor time does not.

Run it with

    python benchmarks/search_overhead.py
    python benchmarks/search_overhead.py --samplers evolution mcts --trials 500
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from detkds.bench.evaluators import SyntheticLandscape
from detkds.bench.simulate import config_for_budget
from detkds.policy_search.divide_and_conquer import make_sampler
from detkds.policy_search.space import load_spaces
from detkds.policy_search.storage import open_storage
from detkds.policy_search.study import SearchStudy


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    print(f"{arguments.trials} candidates, {arguments.space} space of {arguments.knowledge}, journal on disk")
    print(f"{'sampler':28}{'trials':>8}{'wall ms/trial':>16}{'processor ms/trial':>20}{'journal KiB':>14}")
    for sampler in arguments.samplers:
        with tempfile.TemporaryDirectory() as folder:
            trials, wall, processor = measure(sampler, arguments, Path(folder))
            size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / 1024
        print(f"{sampler:28}{trials:8d}{1000 * wall / trials:16.2f}{1000 * processor / trials:20.2f}{size:14.0f}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samplers", nargs="+", default=["evolution"], help="expressions")
    parser.add_argument("--trials", type=int, default=500, help="candidates that are measured")
    parser.add_argument("--space", default="paper", help="a shipped space or a space file")
    parser.add_argument("--knowledge", default="global", help="the kind of knowledge whose space is searched")
    return parser.parse_args()


def measure(name: str, arguments: argparse.Namespace, folder: Path) -> tuple[int, float, float]:
    """Search once; trials stored (looked-up ones included), seconds of wall time and of processor time."""
    space = load_spaces(arguments.space, knowledge=[arguments.knowledge])[arguments.knowledge]
    config = config_for_budget(arguments.trials, sampler=name)
    landscape = SyntheticLandscape(0, rejected=0.0)
    study = SearchStudy("overhead", make_sampler(name, space, 0, config), open_storage(folder), arguments.trials)
    wall, processor = time.perf_counter(), time.process_time()
    while trials := study.ask():
        for trial, result in zip(trials, landscape.evaluate([trial.policy for trial in trials]), strict=True):
            study.tell(trial, result)
    return len(study.trials), time.perf_counter() - wall, time.process_time() - processor


if __name__ == "__main__":
    main()
