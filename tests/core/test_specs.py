"""Specifications as users type them: options, functions, the cache folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwprune.core.errors import UsageError
from hwprune.core.specs import cache_folder, is_function, load_function, split_options


def test_options_follow_a_question_mark() -> None:
    assert split_options("resnet20?width=2&classes=20") == ("resnet20", {"width": "2", "classes": "20"})
    assert split_options("digits") == ("digits", {})


@pytest.mark.parametrize("spec", ["resnet20?width", "resnet20?width=", "resnet20?=2"])
def test_an_option_needs_a_value(spec: str) -> None:
    with pytest.raises(UsageError, match="has no value") as caught:
        split_options(spec)
    assert "resnet20?" in caught.value.hint


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("nets.py:make", True),
        ("a/b.py:make", True),
        ("json.decoder:loads", True),
        ("no_such_package:make", False),
        ("resnet20", False),
        ("npz:a/b.npz", False),
        ("nets.py:", False),
    ],
)
def test_functions_are_told_from_names(reference: str, expected: bool) -> None:
    assert is_function(reference) is expected


def test_a_function_comes_from_a_file(tmp_path: Path) -> None:
    for folder, value in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "net.py").write_text(f"def make():\n    return {value}\n")
    first, second = (load_function(f"{tmp_path}/{folder}/net.py:make") for folder in ("one", "two"))
    assert (first(), second()) == (1, 2)


def test_a_function_comes_from_a_module() -> None:
    assert load_function("math:sqrt")(4) == 2


def test_what_is_wrong_with_a_function_is_said(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def make():\n    return 1\n")
    (tmp_path / "bad.py").write_text("def make(:\n")
    with pytest.raises(UsageError, match=r"no function 'mkae'\. Did you mean 'make'"):
        load_function(f"{tmp_path}/net.py:mkae")
    with pytest.raises(UsageError, match="no file"):
        load_function(f"{tmp_path}/absent.py:make")
    with pytest.raises(UsageError, match=r"bad\.py cannot be imported: invalid syntax"):
        load_function(f"{tmp_path}/bad.py:make")
    with pytest.raises(UsageError, match="module 'no_such_package' cannot be imported"):
        load_function("no_such_package:make")


def test_the_cache_folder_follows_argument_and_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HWPRUNE_CACHE", str(tmp_path / "own"))
    assert cache_folder("here") == Path("here")
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("HWPRUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "hwprune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "hwprune"
