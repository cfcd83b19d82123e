"""Specifications as users type them: options, functions, the cache folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hwprune.core.errors import DataError, UsageError
from hwprune.core.specs import cache_folder, call_function, config_folder, is_function, load_function, split_options


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


def test_files_beside_it_can_be_imported_and_hide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "layers_beside.py").write_text("VALUE = 3\n")
    (tmp_path / "json.py").write_text("raise RuntimeError('hidden')\n")
    (tmp_path / "net.py").write_text("import json, layers_beside\ndef make():\n    return layers_beside.VALUE\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_function(f"{tmp_path / 'net.py'}:make")() == 3
    monkeypatch.delitem(sys.modules, "layers_beside")


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


OWN = """import json
def boom():
    inner()
def inner():
    json.loads("{")
def needs(x):
    return x
def own():
    from hwprune.core.errors import DataError
    raise DataError("as it is")
def leave():
    raise SystemExit(3)
def silent():
    assert False
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "m.py").write_text(OWN)
    return f"{tmp_path}/m.py"


def _call(reference: str, **arguments: object) -> object:
    return call_function(reference, load_function(reference), **arguments)


def test_an_error_in_a_users_function_is_the_users(own: str) -> None:
    with pytest.raises(UsageError, match=r"m\.py:boom raised JSONDecodeError: .*\(m\.py, line 5\)$") as caught:
        _call(f"{own}:boom")
    assert "-vv" in caught.value.hint
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match=r"m\.py:silent raised AssertionError \(m\.py, line 14\)$"):
        _call(f"{own}:silent")
    with pytest.raises(DataError, match=r"^as it is$"):
        _call(f"{own}:own")
    with pytest.raises(SystemExit):
        _call(f"{own}:leave")
    with pytest.raises(UsageError, match=r"^json:loads raised JSONDecodeError: .*\(__init__\.py, line \d+\)$"):
        _call("json:loads", s="{")


def test_an_argument_that_a_function_needs_is_named(own: str) -> None:
    assert _call(f"{own}:needs", x=3) == 3
    with pytest.raises(UsageError, match=r"m\.py:needs cannot be called: missing a required argument: 'x'") as caught:
        _call(f"{own}:needs")
    assert "no arguments" in caught.value.hint
    with pytest.raises(UsageError, match="cannot be called") as caught:
        _call(f"{own}:needs", classes=3)
    assert "only classes" in caught.value.hint


def test_an_error_at_import_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_at_import.py").write_text("import json\nx = nmae\n")
    (tmp_path / "lacks.py").write_text("import no_such_package\n")
    told = r"cannot be imported: NameError: name 'nmae' is not defined \(broken_at_import\.py, line 2\)$"
    monkeypatch.syspath_prepend(tmp_path)
    for location in (f"{tmp_path}/broken_at_import.py", "broken_at_import"):
        with pytest.raises(UsageError, match=told):
            load_function(f"{location}:make")
    with pytest.raises(UsageError, match=r"No module named 'no_such_package' \(lacks\.py, line 1\)$"):
        load_function(f"{tmp_path}/lacks.py:make")


def test_models_and_data_of_the_users_fail_as_the_users(own: str) -> None:
    from hwprune.models import load_model
    from hwprune.training import load_data

    for load in (load_model, load_data):
        with pytest.raises(UsageError, match=r"m\.py:boom raised JSONDecodeError"):
            load(f"{own}:boom")
        with pytest.raises(UsageError, match=r"m\.py:needs cannot be called"):
            load(f"{own}:needs")


def test_a_user_without_a_home_has_a_temporary_cache_and_no_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # the system does not know the user
    for name in ("HOME", "HWPRUNE_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder().parent == tmp_path
    assert not (config_folder() / "config.toml").exists()
    with pytest.raises(OSError, match="Not a directory"):
        config_folder().mkdir(parents=True)
    with pytest.raises(UsageError, match=r"no home folder for the ~ in ~/cache"):
        cache_folder("~/cache")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config_folder() == tmp_path / "hwprune"


def test_the_cache_folder_follows_argument_and_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HWPRUNE_CACHE", str(tmp_path / "own"))
    assert cache_folder("here") == Path("here")
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("HWPRUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "hwprune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "hwprune"
