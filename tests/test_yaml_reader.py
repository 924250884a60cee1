"""YAML as plain data with lines; everything that cannot be read is one error with its lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from detkds.errors import ConfigError, UserError
from detkds.yaml_reader import parse_yaml, read_yaml


def test_data_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: x\ntrain:\n  lr: 0.1\n  steps:\n    - 1\n    - {at: 2}\n", encoding="utf-8")
    data, lines = read_yaml(path)
    assert data == {"name": "x", "train": {"lr": 0.1, "steps": [1, {"at": 2}]}}
    places = [("name",), ("train", "lr"), ("train", "steps", 0), ("train", "steps", 1, "at"), ("train", "absent"), ()]
    assert [lines.at(*place) for place in places] == [f"{path}:{line}" for line in (1, 3, 5, 6, 2, 1)]


def test_an_empty_text_is_nothing_and_nowhere() -> None:
    data, lines = parse_yaml("# only this\n", "a.yaml")
    assert data is None and lines.at("name") == "a.yaml"


def test_dates_stay_text() -> None:
    assert parse_yaml("a: 2026-01-01\nb: 2026-13-45", "a.yaml")[0] == {"a": "2026-01-01", "b": "2026-13-45"}


def test_merged_mappings_give_way_to_what_is_written() -> None:
    text = "base: &base {a: 1, b: 2}\nown: {a: 3, <<: *base}\nboth: {<<: [*base, {a: 9, c: 4}]}\n"
    data, lines = parse_yaml(text, "a.yaml")
    assert data["own"] == {"a": 3, "b": 2} and data["both"] == {"a": 1, "b": 2, "c": 4}
    assert (lines.at("own", "a"), lines.at("own", "b")) == ("a.yaml:2", "a.yaml:1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3", "a.yaml:3: key 'a' is given twice"),
        ("x: 1\na: b: c", "a.yaml:2: not valid YAML: mapping values are not allowed here"),
        ("a: *nobody", "a.yaml:1: not valid YAML: found undefined alias"),
        ("a: \x00", "a.yaml: not valid YAML: unacceptable character"),
        ("--- a\n--- b", "a.yaml:2: not valid YAML: but found another document"),
        ("\na: " + "[" * 60 + "]" * 60, "a.yaml:2: values are nested deeper than 50"),
        ("&a [*a]", "a.yaml:1: values are nested deeper than 50"),
        ("a: 1\nb: " + "9" * 5000, "a.yaml:2: cannot be read as int: '999"),
        ("a: " + str(2**63), "a.yaml:1: expected a whole number of 64 bits, got one of 19 digits"),
        ("a: !!python/object:os.system {}", "a.yaml:1: expected plain data or a plain key, got python/object"),
        ("? [1]\n: 2", "a.yaml:1: expected plain data or a plain key, got seq"),
        ("a: 1\n<<: 3", "a.yaml:2: <<: expected a mapping or a list of mappings"),
    ],
)
def test_what_cannot_be_read(text: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "a.yaml")
    [fault] = caught.value.faults
    assert fault.startswith(expected)


def test_aliases_are_counted_written_out() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(UserError, match=r"a\.yaml:\d+: the file stands for more than 100000 values"):
        parse_yaml("\n".join(levels), "a.yaml")


def test_all_faults_at_once_in_the_error_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml("a: 1\na: 2\nb: !!binary aGk=", "a.yaml", ConfigError)
    assert len(caught.value.faults) == 2
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\x80")
    for name in ("absent.yaml", "b.yaml"):
        with pytest.raises(ConfigError, match=rf"{name}: cannot be read: "):
            read_yaml(tmp_path / name, ConfigError)
