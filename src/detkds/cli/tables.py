"""Results as rich tables, all made from the summary that ``summary.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from detkds.report.formatting import points

if TYPE_CHECKING:
    from detkds.runs.train import SingleTraining

_STYLES = {"teacher": "magenta", "searched": "bold green"}


def comparison_table(summary: Mapping[str, Any]) -> Table:
    """One row per trained detector: AP over seeds, and the paired difference to the better plain student."""
    metric = summary.get("metric", "AP")
    title = f"{metric} on the test images, seeds {_list(summary['seeds'])}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_style="")
    table.add_column("student", no_wrap=True)
    table.add_column("kind")
    others = {"ap50": "AP50", "ap75": "AP75", **({"box_ap": "box AP"} if metric == "mask AP" else {})}
    for title in (metric, *others.values(), "to plain [95%]", "AP by seed"):
        table.add_column(title, justify="right", no_wrap=title != "AP by seed")
    for row in summary["rows"]:
        single = len(row["ap"]) < 2
        mean = points(row["mean"]) + ("" if single else f" ± {points(row['spread'])}")
        if row["mean"] is None and row["kind"] != "teacher":  # a teacher without masks has no mask AP
            mean = "failed"
        metrics = (points(row["metrics"].get(name)) for name in others)
        seeds = " ".join(points(value) for value in row["ap"].values())
        cells = (row["name"], row["kind"], mean, *metrics, difference(row["to_plain"]), seeds)
        table.add_row(*cells, style=_STYLES.get(row["kind"], ""))
    return table


def cost_table(comparison: Mapping[str, Any]) -> Table | None:
    """What a training step costs under each policy; None where nothing was measured."""
    rows = [row for row in comparison["rows"] if row.get("cost")]
    if not rows:
        return None
    rounds = max(row["cost"]["rounds"] for row in rows)
    title = f"one training step with the teacher's forward pass, median of {rounds} taken in turn on one batch"
    caption = (
        "MB for the backward pass: activations that autograd keeps (10^6 bytes) of the student's own losses, and of "
        "the distillation losses beside them; counted, without weights, the batch and what the detectors give out"
    )
    table = Table(box=box.SIMPLE_HEAD, title=title, title_style="", caption=caption, caption_justify="left")
    table.add_column("student", no_wrap=True)
    for name in ("seconds", "x plain", "MB for the backward pass"):
        table.add_column(name, justify="right")
    for row in rows:
        cost = row["cost"]
        if cost["failure"]:
            table.add_row(row["name"], "failed", "-", "-")
            continue
        ratio = "-" if cost["ratio"] is None else f"{cost['ratio']:.2f}"
        added = f" + {cost['losses_mb']:.1f}" if row["kind"] != "plain" else ""
        table.add_row(row["name"], f"{cost['seconds']:.3g}", ratio, f"{cost['student_mb']:.1f}{added}")
    return table


def difference(data: Mapping[str, float | None] | None) -> str:
    """A paired difference with its interval.

    >>> difference({"mean": 1.25, "low": -0.5, "high": 3.0}), difference({"mean": 1.0, "low": None, "high": None})
    ('+1.2 [-0.5, +3.0]', '+1.0 [one seed]')
    """
    if data is None:
        return "-"
    if data["low"] is None or data["high"] is None:
        return f"{data['mean']:+.1f} [one seed]"
    return f"{data['mean']:+.1f} [{data['low']:+.1f}, {data['high']:+.1f}]"


def policy_table(policy: Mapping[str, Any], title: str = "") -> Table:
    """The terms of a policy in plain data."""
    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_style="", title_justify="left")
    for name in ("knowledge", "transforms", "distance"):
        table.add_column(name)
    table.add_column("weight", justify="right")
    for term in policy["terms"]:
        weight = f"{term['weight']:.4g}" + (" x task gradient" if term.get("weighting") == "gradient" else "")
        cells = (term["knowledge"], " > ".join(term.get("transforms", ())) or "-", term["distance"], weight)
        table.add_row(*cells)
    return table


def metrics_table(metrics: Mapping[str, Any], title: str) -> RenderableType:
    """COCO metrics given as fractions, of masks and boxes or of boxes alone, and AP of each class."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_style="", title_justify="left")
    table.add_column("")
    names = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "APs", "ap_medium": "APm", "ap_large": "APl"}
    for name in names.values():
        table.add_column(name, justify="right")
    shown = {"mask": metrics, "box": metrics["boxes"]} if "boxes" in metrics else {"box": metrics}
    for of, values in shown.items():
        table.add_row(of, *(_per_cent(values.get(name)) for name in names))
    classes = [Text.assemble(f"{name} ", (_per_cent(value), "bold")) for name, value in metrics["per_class"].items()]
    return Group(table, Text(f"{next(iter(shown))} AP of each class"), Columns(classes, padding=(0, 3)))


def print_results(console: Console, summary: Mapping[str, Any], folder: Path) -> None:
    """The end of a search: table, verdict, chosen policy, and where everything lies."""
    from detkds.report.agreement import agreement_line

    console.print(comparison_table(summary))
    console.print(Panel(Text(summary["verdict"]), title="verdict", border_style="green", expand=False))
    console.print(policy_table(summary["policy"], "the policy that the search chose, weights as trained"))
    console.print(agreement_line(summary.get("proxy_check")), soft_wrap=True)
    console.print(_files(folder))


def print_comparison(console: Console, comparison: Mapping[str, Any], files: Mapping[Path, str]) -> None:
    """The end of a comparison: tables, verdict, and where everything lies."""
    console.print(comparison_table(comparison))
    if (costs := cost_table(comparison)) is not None:
        console.print(costs)
    console.print(Panel(Text(comparison["verdict"]), title="verdict", border_style="green", expand=False))
    for path, text in files.items():
        console.print(_file(path, text), soft_wrap=True)


def print_proxy_check(console: Console, check: Mapping[str, Any], folder: Path) -> None:
    """The end of a check of the proxy."""
    from detkds.report.agreement import PICTURE, RECORD, agreement_line

    table = Table(box=box.SIMPLE_HEAD, title="AP on the validation images", title_style="", title_justify="left")
    table.add_column("policy")
    table.add_column("proxy", justify="right")
    table.add_column("full budget", justify="right")
    for point in sorted(check["points"], key=lambda point: -point["mean"]):
        table.add_row(point["policy"], points(point["proxy_ap"]), points(point["mean"]))
    console.print(table)
    console.print(agreement_line(check), style="bold", soft_wrap=True)
    for name, text in ((RECORD, "every number"), (PICTURE, "the picture")):
        console.print(_file(folder / name, text), soft_wrap=True)


def print_single(console: Console, done: SingleTraining, which: str) -> None:
    """The end of one training."""
    console.print(metrics_table(done.metrics, f"{which} on the test images"))
    for path, text in ((done.weights, "its weights"), (done.steps, "the losses of its steps")):
        if path.exists():
            console.print(_file(path, text), soft_wrap=True)


def _files(folder: Path) -> RenderableType:
    descriptions = {
        "student.safetensors": "the student trained with the chosen policy",
        "policy.yaml": "the chosen policy, for detkds distill",
        "summary.json": "every number above",
        "report.html": "the report, one file to open or send",
    }
    return Group(*(_file(folder / name, text) for name, text in descriptions.items() if (folder / name).exists()))


def _file(path: Path, what: str) -> Text:
    return Text.assemble((str(path), "bold"), f"  {what}")


def _per_cent(value: float | None) -> str:
    return points(None if value is None else 100 * value)


def _list(values: Any) -> str:
    return ", ".join(map(str, values))
