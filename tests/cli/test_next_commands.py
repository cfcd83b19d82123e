"""What a command proposes to type next is about the network and the target it was about itself."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_fakes import Done, FakeApi
from made_run import measurement

from hwprune.core.files import write_json
from hwprune.core.measurement import Fingerprint
from hwprune.core.widths import ChannelGroup, SearchSpace

Hw = Callable[..., Done]
CPU = replace(measurement("x", 1.0, seed=1, simulated=False).fingerprint, device="cpu")
BOARD = replace(CPU, device="raspberry-pi-5", runtime="tensorrt", precision="fp16", batch=4)


def fitted(fingerprint: Fingerprint) -> SimpleNamespace:
    model = SimpleNamespace(fitted=SimpleNamespace(fingerprint=fingerprint))
    return SimpleNamespace(
        comparison=(), chosen="linear", model=model, train_count=75, held_out_count=25, label_noise=None
    )


@pytest.mark.parametrize(
    ("words", "fingerprint", "following"),
    [
        (("mobilenetv2",), CPU, "mobilenetv2 --data DATA"),
        (("resnet20",), replace(CPU, device="pool"), "resnet20 --data DATA --device DEVICE"),
        (("my.py:build",), CPU, "my.py:build --data DATA"),
        (("digits_resnet",), CPU, "digits_resnet"),
        (("resnet20",), BOARD, "resnet20 --data DATA --device raspberry-pi-5 --runtime tensorrt:fp16 --batch 4"),
        (("kept/resnet56",), CPU, "'resnet56?width=2' --data DATA"),
        (("kept/build",), CPU, "MODEL --data DATA"),
        (("resnet20", "--tables", "kept"), CPU, "resnet20 --data DATA --tables kept"),
    ],
)
def test_fit_proposes_a_search_of_what_it_fitted(
    hw: Hw, api: FakeApi, workplace: Path, words: tuple[str, ...], fingerprint: Fingerprint, following: str
) -> None:
    for folder, name in (("resnet56", "resnet56?width=2"), ("build", "build")):
        (workplace / "kept" / folder).mkdir(parents=True)
        write_json(workplace / "kept" / folder / "table.json", {"model": name})
    api.answers["fit"] = fitted(fingerprint)
    assert hw("fit", *words).err == f"next: hwprune search {following} --latency 60%\n"


def test_fit_of_the_newest_table_proposes_nothing(hw: Hw, api: FakeApi) -> None:
    api.answers["fit"] = fitted(CPU)
    assert hw("fit").err == ""


def test_fit_says_whom_its_choice_serves(hw: Hw) -> None:
    said = " ".join(hw("fit", "--help").out.split())
    assert "keep the best for `hwprune predict`" in said
    assert "A search fits its own" in said


def test_profile_proposes_a_search_of_what_it_measured(hw: Hw, api: FakeApi) -> None:
    rows = (SimpleNamespace(latency_ms=0.4),)
    space = SearchSpace((ChannelGroup("a", 64),), ((32, 64),))
    api.answers["profile"] = SimpleNamespace(
        folder=Path("kept"), model_name="net", tile=16, reference_ms=0.2, damaged_lines=0, rows=rows, space=space,
        fingerprint=CPU,
    )  # fmt: skip
    flags = "--threads 2 --depth --protect head --protect 'layer*.0'"
    done = hw(*shlex.split(f"profile resnet20 {flags} --data d"))
    assert done.err.endswith(f"next: hwprune search resnet20 --data d {flags} --latency 60%\n")
    assert "--protect" not in hw("profile", "resnet20").err
