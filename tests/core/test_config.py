"""Configuration is strict: unknown keys, wrong types and missing keys are named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from hwprune.core import config
from hwprune.core.errors import UsageError


@dataclass(frozen=True)
class Inner:
    """A nested table."""

    size: int = 3


@dataclass(frozen=True)
class Outer:
    """One field of each kind."""

    name: str
    rate: float = 0.5
    on: bool = False
    kind: Literal["a", "b"] = "a"
    limit: float | None = None
    sizes: tuple[int, ...] = ()
    inner: Inner = Inner()


def test_values_are_converted() -> None:
    made = config.from_mapping(
        Outer, {"name": "x", "rate": 1, "on": "true", "limit": "2.5", "sizes": "1,2", "inner": {"size": 4}}, where="t"
    )
    assert made == Outer("x", 1.0, True, "a", 2.5, (1, 2), Inner(4))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "x", "ratee": 1}, r"t: unknown key 'ratee'\. Did you mean 'rate'\?"),
        ({"rate": 1}, "t: missing key 'name'"),
        ({"name": 3}, "t: name is 3, not of type str"),
        ({"name": "x", "rate": "fast"}, "t: rate is 'fast', not of type float"),
        ({"name": "x", "rate": True}, "t: rate is True, not of type float"),
        ({"name": "x", "kind": "c"}, "t: kind is 'c', not one of a, b"),
        ({"name": "x", "sizes": 3}, "t: sizes is 3, not a list"),
        ({"name": "x", "inner": {"sise": 1}}, r"t: inner: unknown key 'sise'\. Did you mean 'size'\?"),
    ],
)
def test_errors_name_key_and_value(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config.from_mapping(Outer, values, where="t")


def test_toml_round_trip(tmp_path: Path) -> None:
    document = {"name": 'a "b"', "rate": 1.5, "on": True, "sizes": [1, 2], "inner": {"size": 3, "deep": {"x": 1}}}
    path = tmp_path / "x.toml"
    path.write_text(config.to_toml(document, {"rate": "from the command line"}))
    assert "rate = 1.5  # from the command line" in path.read_text()
    assert config.read_toml(path) == document


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data", "npz:\U0001f600.npz"),
        ("data", 'tab\t quote" back\\ line\n bell\x07 delete\x7f é \u2028'),
        ("größe", 1),
        ("", ["é", "\U0001f600"]),
        ("a-b_C1", float("inf")),
        ("x", 1e300),
    ],
)
def test_whatever_is_written_can_be_read(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "x.toml"
    path.write_text(config.to_toml({key: value, "table": {key: {key: value}}}), encoding="utf-8", newline="")
    assert config.read_toml(path) == {key: value, "table": {key: {key: value}}}


def test_what_is_no_text_cannot_be_written() -> None:
    with pytest.raises(UsageError, match=r"'caf\\udce9' is not Unicode text"):
        config.to_toml({"data": "caf\udce9"})


def test_broken_toml_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("a = 1\nb = \n")
    with pytest.raises(UsageError, match=r"x\.toml is not a TOML file: .*line 2"):
        config.read_toml(path)
