"""How a command fails: the words, the stream, the exit code."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_fakes import Done, FakeApi

from hwprune.core.errors import (
    BudgetInfeasible,
    DeviceError,
    GraphError,
    HwpruneError,
    Interrupted,
    TableError,
    TrainingDiverged,
    UsageError,
)
from hwprune.search.settings import SearchSettings

Hw = Callable[..., Done]
SEARCH = ("search", "--latency", "60%")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("wrong"), 2),
        (GraphError("op aten::foo has no rule"), 2),
        (TableError("foreign"), 2),
        (DeviceError("no such runtime"), 3),
        (TrainingDiverged("NaN in the loss"), 1),
        (BudgetInfeasible("too little", smallest_ms=1.3), 1),
        (Interrupted("saved"), 130),
        (KeyboardInterrupt(), 130),
        (OSError(28, "No space left on device", "x"), 3),
        (MemoryError(), 3),
        (ZeroDivisionError("boom"), 4),
    ],
)
def test_exit_codes(hw: Hw, api: FakeApi, error: BaseException, code: int) -> None:
    api.answers["search"] = error
    done = hw(*SEARCH)
    assert done.code == code
    assert done.out == ""
    assert "Traceback" not in done.err
    if isinstance(error, HwpruneError):
        assert f"error: {error.message}\n" in done.err


def test_the_hint_follows_the_error(hw: Hw, api: FakeApi) -> None:
    api.answers["search"] = UsageError("no table for p", hint="hwprune profile p")
    assert hw(*SEARCH).err == "error: no table for p\nhint: hwprune profile p\n"


def test_errors_are_json_too_when_json_was_asked_for(hw: Hw, api: FakeApi) -> None:
    api.answers["search"] = UsageError("wrong", hint="right")
    done = hw(*SEARCH, "--json")
    assert done.json == {"schema": "hwprune.search/1", "error": "wrong", "hint": "right", "exit_code": 2}
    assert "error: wrong" in done.err


def test_errors_follow_the_environment_too(hw: Hw, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.answers["search"] = UsageError("wrong", hint="right")
    monkeypatch.setenv("HWPRUNE_JSON", "1")
    for words in (SEARCH, ("serch",), ("search", "--latncy")):
        assert hw(*words).json["exit_code"] == 2
    assert "\x1b" not in hw(*SEARCH).err
    monkeypatch.setenv("HWPRUNE_COLOR", "always")
    assert "\x1b[1;31merror" in hw(*SEARCH).err
    assert "\x1b" in hw("serch").err
    assert "\x1b" not in hw(*SEARCH, "--color", "never").err
    assert "\x1b" not in hw("serch", "--color=never").err
    monkeypatch.setenv("HWPRUNE_VERBOSE", "2")
    assert "Traceback" in hw(*SEARCH).err


def test_errors_are_coloured_as_the_file_says(hw: Hw, api: FakeApi, workplace: Path) -> None:
    (workplace / "hwprune.toml").write_text('color = "always"\n')
    api.answers["search"] = UsageError("wrong")
    assert "\x1b" in hw(*SEARCH).err
    assert "\x1b" in hw("serch", "--color", "always").err
    assert "\x1b" not in hw("serch").err


def test_an_infeasible_budget_says_what_is_reachable(hw: Hw, api: FakeApi) -> None:
    api.answers["search"] = BudgetInfeasible("no network in 1 ms", smallest_ms=1.34)
    document = hw(*SEARCH, "--json").json
    assert (document["verdict"], document["predicted_smallest_ms"], document["exit_code"]) == ("infeasible", 1.34, 1)
    assert "smallest_ms" not in document  # that is measured


def test_a_bug_goes_to_a_file(hw: Hw, api: FakeApi, tmp_path: Path) -> None:
    api.answers["search"] = ZeroDivisionError("boom")
    done = hw(*SEARCH)
    assert "error: a bug in hwprune: ZeroDivisionError: boom" in done.err
    (log,) = (tmp_path / "state" / "hwprune").iterdir()
    assert str(log) in done.err
    assert "Traceback" in log.read_text()
    assert "hwprune search --latency 60%" in log.read_text()


def test_vv_shows_the_traceback(hw: Hw, api: FakeApi) -> None:
    api.answers["search"] = UsageError("wrong")
    assert "Traceback" in hw(*SEARCH, "-vv").err
    api.answers["search"] = ZeroDivisionError("boom")
    assert "ZeroDivisionError: boom" in hw(*SEARCH, "-v", "-v").err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serch"], "unknown verb 'serch'. Did you mean 'search'?"),
        (["search", "--latncy", "60%"], "unknown flag '--latncy'. Did you mean '--latency'?"),
        (["search", "--zzzzzz"], "unknown flag '--zzzzzz'."),
        (["search"], "a search needs a budget"),
        (["search", "--latency", "60q"], "'60q' is not a latency"),
        (["search", "--latency", "160%"], "'160%' is not a percentage above 0 and up to 100"),
        ([*SEARCH, "--method", "gredy"], "unknown method 'gredy'. Did you mean 'greedy'?"),
        ([*SEARCH, "--set", "x"], "--set x is not KEY=VALUE"),
        ([*SEARCH, "--epochs", "many"], "invalid value for '--epochs'"),
        ([*SEARCH, "--threads", "0"], "invalid value for '--threads'"),
        ([*SEARCH, "--statistic", "p95"], "invalid value for '--statistic': 'p95' is not one of 'median', 'p90'"),
        ([*SEARCH, "a", "b"], "got unexpected extra argument"),
        (["profile", "--input", "1x3xQ"], "'1x3xQ' is not a shape"),
        (["--json", "search"], "unknown flag '--json'."),
        ([*SEARCH, "--config", "absent.toml"], "no configuration file absent.toml"),
    ],
)
def test_a_wrong_command_line(hw: Hw, api: FakeApi, words: list[str], message: str) -> None:
    done = hw(*words)
    assert done.code == 2
    assert done.err.startswith(f"error: {message}")
    assert "hint: " in done.err
    assert api.calls == []


@pytest.mark.parametrize(
    ("typed", "hint"),
    [("0.6", "60% of dense, or 0.6ms"), (".05", "5% of dense, or .05ms"), ("60", "60% of dense, or 60ms")],
)
def test_a_budget_without_a_unit_is_taken_for_what_it_looks_like(hw: Hw, api: FakeApi, typed: str, hint: str) -> None:
    for words in (("search", "--latency", typed), ("compare", "--budgets", typed)):
        assert hw(*words).err == f"error: a budget of '{typed}' has no unit\nhint: {hint}\n"
    with pytest.raises(UsageError) as caught:
        SearchSettings.make(latency=typed)
    assert caught.value.hint == hint


def test_a_network_of_ones_own_needs_data(hw: Hw, api: FakeApi, workplace: Path) -> None:
    for verb in (("search", "--latency", "60%"), ("compare",)):
        for model in ("my.py:build", "resnet20", "resnet20?width=2"):
            done = hw(*verb, model)
            assert done.code == 2
            assert done.err.startswith(f"error: which data is {model} for?\nhint: add --data: digits, ")
    assert api.calls == []
    with pytest.raises(UsageError, match="which data is resnet20 for"):
        SearchSettings.make(latency="60%", model="resnet20")
    api.answers["search"] = UsageError("asked")
    for model in ("digits_resnet", "digits_resnet?width=2"):
        assert "asked" in hw(*SEARCH, model).err
    (workplace / "hwprune.toml").write_text('data = "npz:mine.npz"\n')
    assert "asked" in hw(*SEARCH, "my.py:build").err


@pytest.mark.parametrize(
    "words",
    [
        ("doctor", "--device", "jetson"),
        (*SEARCH, "--device", "jetson"),
        ("profile", "--device", "cpu,jetson"),
        ("devices", "new", "desk", "--from", "jetson", "--host", "ann@10.0.0.7"),
    ],
)
def test_no_board_is_guessed_among_several(hw: Hw, api: FakeApi, words: tuple[str, ...]) -> None:
    done = hw(*words)
    assert done.code == 2
    boards = "jetson-agx-orin, jetson-agx-xavier, jetson-orin-nano, jetson-orin-nx or jetson-thor"
    assert done.err.startswith(f"error: 'jetson' may be {boards}\nhint: name one; ")
    assert "hwprune devices new NAME --from KIND" in done.err
    assert api.calls == []


def test_an_alias_may_be_the_beginning_of_other_names(hw: Hw, api: FakeApi, workplace: Path) -> None:
    api.answers["doctor"] = ()
    (workplace / "devices").mkdir()
    text = 'schema = 1\nname = "desk"\naliases = ["jetson"]\n[runtimes.onnxruntime]\n'
    (workplace / "devices" / "desk.toml").write_text(text)
    assert hw("doctor", "--device", "jetson").code == 0
    assert hw("doctor", "--device", "jetsom").code == 0  # nearest names are the API's affair


def test_flags_before_the_verb_are_explained(hw: Hw) -> None:
    assert "hint: flags come after the verb: hwprune search --json" in hw("--json", "search").err


def test_streams_hold_no_colours_when_they_are_no_terminals(hw: Hw) -> None:
    assert "\x1b" not in hw("serch").err


def test_a_reader_that_stops_early_is_no_error() -> None:
    root = Path(__file__).parents[2]
    words = [sys.executable, "-m", "hwprune", "search", "--latency", "60%", "--print-config"]
    writer = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root)
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.close()
    assert writer.stderr.read() == b""
    assert writer.wait() == 0
    writer.stderr.close()


def test_colours_on_demand(hw: Hw, api: FakeApi) -> None:
    from types import SimpleNamespace

    api.answers["export"] = SimpleNamespace(path=Path("m"), size_bytes=1, max_difference=0.0, tolerance=1.0)
    assert "\x1b[32mpass" in hw("export", "--color", "always").out
    assert "\x1b" not in hw("export", "--color", "never").out
