"""The registry: expressions to pieces and back, look-up on demand, and errors that help."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detkds.errors import UserError
from detkds.registry import Registry, expression, parse_expression


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[Any]]:
    """A registry over an empty package, so that nothing but the test's own pieces is in it."""
    (tmp_path / "empty_shapes").mkdir()
    (tmp_path / "empty_shapes" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    registry: Registry[Any] = Registry("shape", "empty_shapes")

    @registry.register("circle")
    @dataclass(frozen=True)
    class Circle:
        """All points at one distance.

        A second paragraph.
        """

        radius: float
        filled: bool = False
        colour: str = "red"
        width: float = 1.0

        def __post_init__(self) -> None:
            if self.radius <= 0:
                raise ValueError(f"radius: expected a positive number, got {self.radius}")

    yield registry
    monkeypatch.undo()
    sys.modules.pop("empty_shapes", None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("l1", ("l1", (), {})),
        ("l1()", ("l1", (), {})),
        ("  scale( 2 ) ", ("scale", (2,), {})),
        ("scale(2.5)", ("scale", (2.5,), {})),
        ("scale(-1e-3)", ("scale", (-0.001,), {})),
        ("norm(C, mode=l2)", ("norm", ("C",), {"mode": "l2"})),
        ("f(true, False, none, truest)", ("f", (True, False, None, "truest"), {})),
        ("detkds/one-stage", ("detkds/one-stage", (), {})),
    ],
)
def test_parse_expression(text: str, expected: tuple[str, tuple[Any, ...], dict[str, Any]]) -> None:
    assert parse_expression(text) == expected


def test_parsed_numbers_keep_their_type() -> None:
    _, (whole, fraction), _ = parse_expression("f(2, 2.0)")
    assert type(whole) is int
    assert type(fraction) is float


@pytest.mark.parametrize("text", ["", "2scale", "scale(2", "scale 2", "(2)", None, 3, False])
def test_what_is_no_expression_is_refused(text: Any) -> None:
    with pytest.raises(UserError, match="expected an expression such as"):
        parse_expression(text)


def test_positional_after_keyword_is_refused() -> None:
    with pytest.raises(UserError, match="positional argument 'C' after a keyword argument"):
        parse_expression("norm(mode=l2, C)")


def test_keyword_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match="argument 'mode' is given twice"):
        parse_expression("norm(C, mode=l2, mode=std)")


def test_build_binds_positional_and_keyword_arguments(registry: Registry[Any]) -> None:
    circle = registry.build("circle(2, colour=blue)")
    assert (circle.radius, circle.filled, circle.colour, circle.name) == (2, False, "blue", "circle")


def test_build_of_an_unknown_name_suggests_the_nearest(registry: Registry[Any]) -> None:
    with pytest.raises(UserError, match="unknown shape 'circel'; did you mean 'circle'"):
        registry.build("circel(2)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("circle", "missing a required argument: 'radius'"),
        ("circle(1, size=2)", "unexpected keyword argument 'size'"),
        ("circle(1, true, red, 1, 5)", "too many positional arguments"),
    ],
)
def test_build_with_wrong_arguments_names_the_right_ones(registry: Registry[Any], text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        registry.build(text)
    assert message in str(caught.value)
    assert "radius" in str(caught.value).partition("its arguments are")[2]


@pytest.mark.parametrize("text", ["circle(-1)", "circle(wide)"])
def test_a_value_the_piece_refuses_is_a_user_error(registry: Registry[Any], text: str) -> None:
    with pytest.raises(UserError, match="shape 'circle"):
        registry.build(text)


def test_expression_writes_required_bare_and_optional_only_where_changed(registry: Registry[Any]) -> None:
    circle = registry["circle"]
    assert expression(circle(2.0)) == "circle(2)"
    assert expression(circle(0.5, filled=True, colour="blue")) == "circle(0.5, filled=true, colour=blue)"


def test_expression_of_a_piece_without_fields_is_its_name(registry: Registry[Any]) -> None:
    @registry.register("dot")
    @dataclass(frozen=True)
    class Dot:
        """A point."""

    assert expression(Dot()) == "dot"


@given(
    radius=st.floats(min_value=1e-300, max_value=1e300, exclude_min=True),
    width=st.floats(allow_nan=False),
    filled=st.booleans(),
)
def test_expression_is_the_inverse_of_build(radius: float, width: float, filled: bool) -> None:
    registry: Registry[Any] = Registry("shape", "json")  # a package that registers nothing

    @registry.register("ring")
    @dataclass(frozen=True)
    class Ring:
        """A circle with a width."""

        radius: float
        width: float = 1.0
        filled: bool = False

    ring = Ring(radius, width, filled)
    assert registry.build(expression(ring)) == ring


def test_a_name_cannot_be_taken_twice(registry: Registry[Any]) -> None:
    with pytest.raises(ValueError, match="shape 'circle' is registered twice"):
        registry.register("circle")(dict)


def test_names_contains_and_iteration(registry: Registry[Any]) -> None:
    registry.register("arc")(lambda: "arc")
    assert registry.names() == ["arc", "circle"] == list(registry)
    assert "arc" in registry
    assert "square" not in registry


def test_a_function_can_be_registered_and_built(registry: Registry[Any]) -> None:
    registry.register("line")(lambda length=1: ("line", length))
    assert registry.build("line(3)") == ("line", 3)


def test_summary_is_the_first_docstring_line(registry: Registry[Any]) -> None:
    assert registry.summary("circle") == "All points at one distance."


def _write_package(folder: Path, name: str, **modules: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("")
    for module, text in modules.items():
        (folder / name / f"{module}.py").write_text(text)


def test_modules_are_imported_at_the_first_look_up_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registrar: Registry[Any] = Registry("tool", "lazy_tools")
    text = "import test_registry_host\ntest_registry_host.registrar.register({!r})(lambda: {!r})\n"
    _write_package(tmp_path, "lazy_tools", hammer=text.format("hammer", 1), saw=text.format("saw", 2))
    host = type(importlib)("test_registry_host")
    host.registrar = registrar  # type: ignore[attr-defined]
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "test_registry_host", host)

    assert "lazy_tools.hammer" not in sys.modules
    assert registrar.build("saw") == 2
    assert registrar.names() == ["hammer", "saw"]


def test_a_module_that_cannot_be_imported_is_reported_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second look-up must not answer 'unknown name' for what failed to load."""
    _write_package(tmp_path, "broken_tools", drill="raise RuntimeError('drill is broken')\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry: Registry[Any] = Registry("tool", "broken_tools")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="drill is broken"):
            registry.names()
