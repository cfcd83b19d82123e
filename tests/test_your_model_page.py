"""The page on one's own model and data tells the truth: its files, blocks and commands are run on the simulated device.

That every other command of the page can be typed is tested with those of all pages, in `test_device_docs.py`.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.core import TyperGroup

import hwprune as hp
from hwprune.cli import main
from hwprune.cli._main import app
from hwprune.core.files import Journal, read_json
from hwprune.training import DataOptions, TrainPlan, evaluate, load_data, train_dense
from hwprune.training._denoising import DenoisingOptions

PAGE = (Path(__file__).parents[1] / "docs" / "your_model.md").read_text()
FILE, WEIGHTS, SEGMENTATION, RUN = re.findall(r"```python\n(.*?)```", PAGE, re.S)
(COMMANDS,) = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
# What the page leaves at its defaults, made short: these take effect below every flag that is typed.
QUICK = 'device = "simulated"\nmethod = "greedy"\nsamples = 16\nepochs = 0.5\nfinetune_epochs = 0.5\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the page's file and trained weights of its network, as some trainers save them."""
    place = tmp_path_factory.mktemp("own")
    (place / "mine.py").write_text(FILE)
    (place / "hwprune.toml").write_text(QUICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(str(place))
        patch.setenv("HWPRUNE_CACHE", str(place / "cache"))
        patch.setenv("XDG_CONFIG_HOME", str(place / "config"))
        network = hp.load_model("mine.py:build")
        train_dense(network, load_data("mine.py:arrays"), plan=TrainPlan(epochs=3, batch_size=16))
        state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
        torch.save({"state_dict": state, "epoch": 3}, place / "mine.pt")
        yield place
    sys.modules.pop("mine", None)


def _run(block: str) -> tuple[dict[str, Any], str]:
    """The names that a block leaves and what it prints."""
    names: dict[str, Any] = {"__name__": "page"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "your_model.md", "exec"), names)
    return names, printed.getvalue()


def _typed(command: str) -> dict[str, Any]:
    """The document that a command of the page prints; it must have ended well."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main([*shlex.split(command)[1:], "--json"])
    assert code == 0, printed.getvalue()
    found: dict[str, Any] = json.loads(printed.getvalue())
    return found


@pytest.fixture(scope="module")
def searched(folder: Path) -> Path:
    """The run of the page's first command, with weights that its second block made of the `.pt` file."""
    _run(WEIGHTS)
    (command,) = (line for line in COMMANDS.splitlines() if line.startswith("hwprune search"))
    return folder / _typed(command)["run_dir"]


def _events(run: Path) -> list[dict[str, Any]]:
    return Journal(run / "journal.jsonl").read()[0]


def test_weights_of_a_pt_file_arrive_and_are_taken_as_they_are(searched: Path, folder: Path) -> None:
    given = torch.load(folder / "mine.pt", weights_only=True)["state_dict"]
    kept = load_file(str(searched / "dense.safetensors"))
    assert {f"module.{name}" for name in kept} == set(given)
    assert all(torch.equal(tensor, given[f"module.{name}"]) for name, tensor in kept.items())
    assert "dense" not in {event["stage"] for event in _events(searched) if event["event"] == "EpochDone"}


def test_every_file_of_a_run_that_is_named_is_there(searched: Path) -> None:
    (sentence,) = re.findall(r"^A run's folder.*?pickle\.$", PAGE, re.S | re.M)
    named = re.findall(r"`(\w+\.(?:onnx|json|jsonl|safetensors|html))`", sentence)
    assert len(named) == 8
    assert [name for name in named if not (searched / name).exists()] == []


def _profiled() -> list[dict[str, Any]]:
    """The rows of all tables that a profile measured, and not a search for itself."""
    rows = [record["row"] for path in Path("latency_tables").rglob("rows.jsonl") for record in Journal(path).read()[0]]
    return [row for row in rows if row["kind"] != "search"]


@pytest.mark.usefixtures("searched")
def test_a_second_budget_takes_the_table_as_it_is() -> None:
    before = _profiled()
    (command,) = (line for line in COMMANDS.splitlines() if line.startswith("hwprune search"))
    assert _typed(command.replace("60%", "80%"))["verdict"] == "pass"
    assert len(before) >= 16
    assert _profiled() == before


def test_a_run_comes_back_as_an_ordinary_network(searched: Path, folder: Path) -> None:
    names, printed = _run(RUN)
    assert printed.count("can be cut") == 2
    assert "it is an output of the network" in printed
    assert type(names["small"]) is torch.nn.Sequential
    assert names["small"][0].out_channels < 32
    assert not names["small"].training
    assert (folder / "small.onnx").exists()
    scored = evaluate(names["small"], load_data("mine.py:arrays"), "test").score
    assert scored == read_json(searched / "result.json")["score"]


@pytest.mark.usefixtures("folder")
def test_a_function_gets_the_options_after_the_question_mark() -> None:
    assert hp.load_model("mine.py:build?width=64")[0].out_channels == 64
    assert hp.load_model("mine.py:build", classes=7)[-1].out_features == 7


def test_the_segmentation_works_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names, printed = _run(SEGMENTATION)
    assert re.fullmatch(r"pass pixel accuracy 0\.\d+\n", printed)
    result = names["run"].result
    assert result.dense_score > 0.8  # half of the pixels are right by chance
    assert result.score > 0.8


def test_every_option_of_data_is_explained_and_every_flag_exists() -> None:
    options = {field.name for kind in (DataOptions, DenoisingOptions) for field in fields(kind)}
    section = PAGE.split("## The data")[1].split("## Tasks")[0]
    assert {name for name in options if not re.search(rf"[`?]{name}[`=]", section)} == set()
    known = {name for command in _commands() for param in command.params for name in param.opts}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) <= known


def _commands() -> list[Any]:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return list(group.commands.values())


def test_the_page_can_be_read_in_one_go() -> None:
    lines = PAGE.splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 175
