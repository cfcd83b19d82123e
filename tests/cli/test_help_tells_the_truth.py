"""What help says of a flag is so: its default, its range, whether it takes a value; and its examples can be typed."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from cli_fakes import Done, FakeApi

from hwprune.cli._main import VERBS

Hw = Callable[..., Done]
NAMES = [module.__name__.rpartition(".")[2] for module in VERBS]
WIDTHS = ("80", "120")
SEARCH = ("search", "--latency", "60%")


def words(text: str) -> str:
    """Without the frames of the panels, each gap one blank."""
    return " ".join(text.replace("│", " ").split())


@pytest.fixture(params=WIDTHS)
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", request.param)
    return int(request.param)


@pytest.mark.parametrize("verb", NAMES)
def test_help_names_no_types_and_fits_the_terminal(hw: Hw, columns: int, verb: str) -> None:
    out = hw(verb, "--help").out
    assert re.findall(r"<[a-z]+[^>]*>", out) == []
    assert "[[" not in out
    assert max(map(len, out.splitlines())) <= columns


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("search", "--json One JSON document on stdout."),
        ("search", "--depth Let whole residual branches go, too."),
        (
            "search",
            "--total-epochs N [x>=0] Epochs of search and finetuning together, instead of --finetune-epochs. --",
        ),
        ("compare", "equal for all methods. [default: (--epochs + --finetune-epochs)]"),
        ("search", "MODEL A reference network, torchvision:NAME"),
        ("search", "[default: (digits_resnet)]"),
        ("search", "--dense-epochs N [x>=0] Epochs of the dense network, without --weights; 0: it is taken as it is."),
        ("search", "--epochs N [x>0]"),
        ("search", "--min-keep SHARE [0<x<=1]"),
        ("finetune", "--epochs N [x>0]"),
        ("bench", "SUBJECT ONNX files, models or runs"),
        ("explain", "--rows N [x>=1]"),
    ],
)
def test_what_help_says(hw: Hw, verb: str, said: str) -> None:
    assert said in words(hw(verb, "--help").out)


@pytest.mark.parametrize("flag", ["--epochs", "--lr", "--min-keep"])
@pytest.mark.parametrize("value", ["0", "nan"])
def test_a_range_without_its_end_refuses_the_end(hw: Hw, api: FakeApi, flag: str, value: str) -> None:
    done = hw(*SEARCH, flag, value)
    assert done.code == 2
    assert done.err.startswith(f"error: invalid value for '{flag}': {value} is not in the range ")
    assert api.calls == []


@pytest.mark.parametrize("flag", ["--dense-epochs", "--finetune-epochs", "--total-epochs"])
def test_a_range_with_its_end_takes_the_end(hw: Hw, flag: str) -> None:
    from hwprune.search.settings import SearchSettings

    name = flag.removeprefix("--").replace("-", "_")
    assert hw(*SEARCH, flag, "0", "--print-config").out.count(f"{name} = 0.0") == 1
    assert getattr(SearchSettings.make(latency="60%", **{name: 0.0}), name) == 0
