"""The page: whole, self-contained, and safe whatever names say."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from detkds.policy_search.result import Trial
from detkds.report import write_report
from detkds.report.page import render

EVIL = "<script>alert('$x_1$')</script>"
VOID = {"meta", "br", "img", "link", "hr", "input"}


class Checker(HTMLParser):
    """Collects tags and attributes, and tags that are closed in another order than they were opened."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.crossed: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.crossed.append(tag)


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert (checker.open, checker.crossed) == ([], [])
    return checker


def test_the_page_says_what_the_summary_holds(summary: dict[str, Any], records: list[Trial], tmp_path: Path) -> None:
    page = write_report(tmp_path / "report.html", summary, records).read_text(encoding="utf-8")
    checked(page)
    said = ["birds", "&#39;searched&#39; wins with 24.0 AP.", "23.0 25.0 24.0", "+13.0", "[+9.5, +16.5]", "catt", "2.5"]
    said += ["its loss reaches …, over the limit of …", "the layouts differ", "2.0 h", "torch 2.11", "15.5 16.5"]
    said += ["48.5 epochs were trained, 71.5 saved"]
    for text in said:
        assert text in page, text
    ablated = {**summary["search"], "method": "joint", "filter": False}
    for text in ("all kinds of knowledge in one joint space", "no candidate was refused before training"):
        assert text in render({**summary, "search": ablated}, records) and text not in page
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_pair_of_masks_is_reported_by_mask_ap(summary: dict[str, Any], records: list[Trial]) -> None:
    assert "box AP" not in render(summary, records)
    for row in summary["rows"]:
        row["metrics"]["box_ap"] = 43.21
    page = render({**summary, "metric": "mask AP"}, records)
    assert page.count('<th class="n">box AP</th>') == 1 and page.count("43.2") == len(summary["rows"])
    assert "Comparison on the test images: mask AP" in page and "mask AP ± 1.0" in page
    assert not checked(page).crossed


def test_nothing_is_loaded_from_elsewhere(summary: dict[str, Any], records: list[Trial]) -> None:
    page = render(summary, records)
    checker = checked(page)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(checker.tags)
    for name, value in checker.attributes:
        if name in ("src", "href", "xlink:href", "action", "srcset"):
            assert value is not None
            assert value.startswith("#")
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_both_plots_are_inline_and_their_ids_do_not_collide(summary: dict[str, Any], records: list[Trial]) -> None:
    checker = checked(render(summary, records))
    assert checker.tags.count("svg") == 2
    ids = [value for name, value in checker.attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 4


def test_names_reasons_and_classes_are_escaped_everywhere(summary: dict[str, Any], records: list[Trial]) -> None:
    summary["name"] = summary["verdict"] = EVIL
    for row in summary["rows"]:
        row["name"] = EVIL + row["name"]
        row["failures"] = {"0": EVIL}
    summary["policy"]["terms"][0]["knowledge"] = EVIL
    summary["search"]["refused_knowledge"] = {EVIL: EVIL}
    summary["confirmation"] = [{"trial": EVIL, "policy": f"{EVIL}\n{EVIL}", "proxy_ap": None, "ap": {"1": 2.0}}]
    names = [row["name"] for row in summary["rows"]]
    finals = [{"name": name, "seed": 0, "metrics": {"per_class": {EVIL: 0.5}}} for name in names]
    wicked = [Trial(**{**vars(r), "study": EVIL, "reason": EVIL}) for r in records]
    page = render(summary, wicked, finals, folder=EVIL)
    assert "script" not in checked(page).tags
    assert "<script" not in page.lower()
    assert page.count("&lt;script&gt;") > 10


def test_a_run_in_which_nothing_was_measured_still_has_a_page(summary: dict[str, Any]) -> None:
    for row in summary["rows"]:
        row.update(mean=None, spread=None, ap={}, to_plain=None, metrics={})
    summary["policy"]["terms"] = summary["confirmation"] = []
    page = render(summary, [])
    checked(page)
    assert "failed" in page


@pytest.mark.parametrize("difference", [None, {"mean": -2.0, "low": None, "high": None}])
def test_differences_without_an_interval(summary: dict[str, Any], records: list[Trial], difference: Any) -> None:
    summary["rows"][2]["to_plain"] = difference
    page = render(summary, records)
    assert ("one seed" in page) is (difference is not None)


def test_the_same_run_gives_the_same_page(summary: dict[str, Any], records: list[Trial]) -> None:
    assert render(summary, records) == render(summary, records)


def test_a_page_that_cannot_be_written_leaves_the_old_one(
    summary: dict[str, Any], records: list[Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_report(tmp_path / "report.html", summary, records)
    before = path.read_text(encoding="utf-8")

    def full(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_report(path, {**summary, "name": "other"}, records)
    assert path.read_text(encoding="utf-8") == before


def test_a_run_that_has_just_begun_has_a_page() -> None:
    page = render({}, [])
    checked(page)
    assert "Still running: this is what there is so far." in page
    for absent in ("Comparison on the test images", "The chosen policy", "What to do next", "How the trials ended"):
        assert absent not in page


def test_a_search_that_is_running_shows_its_best_so_far(summary: dict[str, Any], records: list[Trial]) -> None:
    running = {key: summary[key] for key in ("name", "version", "data", "seconds")}
    page = render({**running, "progress": "search: 12/60, <b>about</b> 4 min remaining"}, records)
    assert checked(page).tags.count("svg") == 1
    for text in ("birds", "Still running", "search: 12/60, &lt;b&gt;", "14.0 AP on the validation part, study global"):
        assert text in page, text
    assert "global: - | l1 x 1" in page and "Which options did well" in page
    assert "candidate trainings" not in page


@pytest.mark.parametrize("part", ["rows", "policy", "search", "confirmation", "data", "machine", "seconds", "verdict"])
def test_every_part_of_a_summary_may_be_missing(summary: dict[str, Any], records: list[Trial], part: str) -> None:
    del summary[part]
    page = render({**summary, "running": True}, records)
    checked(page)
    assert "Still running" in page and "What to do next" not in page


def test_a_finished_run_is_not_called_running(summary: dict[str, Any], records: list[Trial]) -> None:
    assert "running" not in render(summary, records)
    assert "Verdict so far" in render({**summary, "running": True}, records)


def test_forty_classes_are_shown_those_that_gain_most(summary: dict[str, Any], records: list[Trial]) -> None:
    plain = {f"class {index:02}.": 0.1 for index in range(41)}
    gains = {name: 0.9 - index / 100 for index, name in enumerate(plain)}
    finals = [
        {"name": name, "seed": 0, "metrics": {"per_class": aps}}
        for name, aps in (("plain", plain), ("searched", gains))
    ]
    page = render(summary, records, finals)
    assert "class 00." in page and "class 39." in page
    assert "class 40." not in page
