"""Whole runs, from a network to a verdict, on the simulated device and on this machine."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hwprune import api
from hwprune.core.errors import BudgetInfeasible, DataError, Interrupted, RunError, UsageError
from hwprune.core.events import Caution, Event, Note, SearchStep, StageDone
from hwprune.core.files import Journal, read_json
from hwprune.core.measurement import Measurement
from hwprune.devices import connect
from hwprune.report.run_data import RunData
from hwprune.search import attempts, finish, refine
from hwprune.search.outcomes import Run
from hwprune.training import Data, evaluate

Search = Callable[..., Run]


def check_pass(run: Run, fraction: float) -> None:
    """The budget was met by the upper end of the run's own final measurement, and used."""
    result = run.result
    assert result.verdict == "pass"
    assert result.measured_ci_ms is not None
    assert result.measured_ms is not None
    baseline = read_json(run.folder / "baseline.json")
    assert result.budget_ms == baseline["budget_ms"]
    dense_ms = Measurement.from_json(baseline["dense"]).latency_ms
    assert result.budget_ms == pytest.approx(fraction * dense_ms)
    assert result.measured_ci_ms[0] <= result.measured_ms <= result.measured_ci_ms[1] <= result.budget_ms
    assert result.utilisation == pytest.approx(result.measured_ms / result.budget_ms)


def used_or_nothing_between(run: Run) -> bool:
    """At least 95 % of the budget is used, or the method ran out of answers between what passed and what missed."""
    if float(run.result.utilisation or 0) >= 0.95:
        return True
    events = Journal(run.folder / "journal.jsonl").read()[0]
    cautions = [event["text"] for event in events if event["event"] == "Caution"]
    return any("the method has no candidate between" in text for text in cautions)


MATRIX = [(percent, "wgates") for percent in (90, 75, 60, 45, 30)] + [(75, "uniform"), (45, "greedy")]


@pytest.mark.parametrize(("percent", "method"), MATRIX)
def test_budget_matrix(search: Search, percent: int, method: str) -> None:
    run = search(latency=f"{percent}%", method=method)
    check_pass(run, percent / 100)
    assert used_or_nothing_between(run)
    assert run.result.simulated


def test_what_a_run_leaves_behind(search: Search, dense: nn.Module, few_digits: Data) -> None:
    before = copy.deepcopy(dense.state_dict())
    run = search(method="wgates", epochs=2.0)
    names = {path.name for path in run.folder.iterdir()}
    artefacts = {"run.toml", "environment.json", "journal.jsonl", "log.txt", "dense.safetensors", "best.safetensors"}
    assert (
        artefacts | {"baseline.json", "recipe.json", "dense.onnx", "model.onnx", "result.json", "layers.json"} <= names
    )
    document = read_json(run.folder / "result.json")
    assert next(iter(document)) == "schema"
    assert document["schema"] == "hwprune.search/1"
    for name, tensor in dense.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    small = run.model
    assert type(small) is type(dense)
    assert run.result.score == pytest.approx(evaluate(small, few_digits, "test").score)
    assert sum(p.numel() for p in small.parameters()) == run.result.params
    x = few_digits.batch("test", torch.arange(1))[0]
    with connect_simulated() as board, torch.no_grad():
        (found,) = board.infer((run.folder / "model.onnx").read_bytes(), {"input": x.contiguous().numpy()})
        assert np.abs(found - small(x).numpy()).max() < 1e-4
    data = RunData.read(run.folder)
    assert any(isinstance(event.event, SearchStep) for event in data.events)
    assert data.layers is not None


def connect_simulated() -> Any:
    """A board whose `infer` computes the network's real outputs."""
    from hwprune.core.measurement import Target

    return connect(Target("cpu"))


def test_the_same_command_returns_the_finished_result(search: Search) -> None:
    first = search()
    heard: list[Event] = []
    again = search(on_event=heard.append)
    assert again.result == first.result
    assert [type(event) for event in heard] == [Note]
    with pytest.raises(RunError, match=r"latency_fraction: 0\.6 there, 0\.5 now"):
        search(latency="50%")


def test_the_same_seed_gives_the_same_network(search: Search, tmp_path: Path) -> None:
    one, two = (search(run_dir=tmp_path / name, tables=tmp_path / f"tables {name}", method="wgates") for name in "ab")
    assert one.result.widths == two.result.widths
    assert one.result.score == two.result.score
    for left, right in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_infeasible_is_refused_before_any_training(search: Search) -> None:
    heard: list[Event] = []
    run = search(latency="2%", on_event=heard.append)
    assert run.verdict == "infeasible"
    assert run.result.smallest_ms is not None
    assert run.result.smallest_ms > run.result.budget_ms
    assert run.measured is None
    cautions = [event for event in heard if isinstance(event, Caution)]
    assert "the smallest allowed one needs" in cautions[0].text
    assert not any(isinstance(event, StageDone) and event.stage in ("dense", "search") for event in heard)
    with pytest.raises(UsageError, match="has no pruned network"):
        _ = run.model


def test_interrupt_saves_and_the_same_command_goes_on(search: Search) -> None:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    with pytest.raises(Interrupted):
        search(method="wgates", stop=stop)
    run = search(method="wgates")
    check_pass(run, 0.6)


def _search_in_child(search: Search, options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    search(**options)
    os._exit(0)


def test_a_settled_candidate_is_not_measured_anew(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill during finetuning a real device would say something else, and the checkpoint fit nothing."""

    class Killed(Exception):
        pass

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(finish, "export_network", killed)
        with pytest.raises(Killed):
            search(method="wgates", tables=tmp_path / "tables")
    monkeypatch.setattr(attempts, "settle", killed)
    resumed = search(method="wgates", tables=tmp_path / "tables")
    monkeypatch.undo()
    straight = search(method="wgates", tables=tmp_path / "other tables", run_dir=tmp_path / "straight")
    assert resumed.result.widths == straight.result.widths
    assert resumed.result.score == straight.result.score
    assert resumed.result.predictions == straight.result.predictions


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_kill_at_any_moment(search: Search, tmp_path: Path) -> None:
    """Twenty kills at seeded random instants: what the journal had is never lost, and the run ends with a pass."""
    context = multiprocessing.get_context("fork")
    options = {"method": "wgates", "tables": tmp_path / "own tables", "samples": 30}
    rng = random.Random(0)
    kills = runs = 0
    known: list[dict[str, Any]] = []
    while kills < 20:
        folder = tmp_path / f"run {runs}"
        child = context.Process(target=_search_in_child, args=(search, {**options, "run_dir": folder}))
        child.start()
        child.join(timeout=rng.uniform(0.05, 1.5))
        if child.exitcode is not None:
            assert child.exitcode == 0
            runs, known = runs + 1, []
            continue
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += 1
        records, damaged = Journal(folder / "journal.jsonl").read()
        assert damaged <= kills
        assert records[: len(known)] == known
        known = records
    run = search(**options, run_dir=folder)
    check_pass(run, 0.6)
    done = [record["stage"] for record in Journal(folder / "journal.jsonl").read()[0] if record["event"] == "StageDone"]
    assert done.count("search") == 1
    straight = search(**options, run_dir=tmp_path / "straight")
    found, expected = (read_json(item.folder / "answer" / "answer.json") for item in (run, straight))
    assert found == expected, "the search itself depends on the profile and the seed alone"


def test_two_processes_on_one_folder(search: Search, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    holding = (
        "import pathlib, sys; from hwprune.core.files import lock\n"
        "with lock(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holding, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"in use by process {other.pid}"):
            search()
        other.communicate("", timeout=60)
    assert search().verdict == "pass"  # it let go


def test_nan_in_the_data_is_named(dense: nn.Module, few_digits: Data, tmp_path: Path) -> None:
    source = tmp_path / "broken.npz"
    images = few_digits.train.images.float().numpy().copy()
    images[3, 0, 0, 0] = np.nan
    labels = few_digits.train.targets.numpy()
    np.savez(source, x_train=images, y_train=labels, x_test=images, y_test=labels)
    with pytest.raises(DataError, match=r"(?i)nan"):
        api.search("digits_resnet", f"npz:{source}", latency="60%", device="simulated", run_dir=tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "wgate"}, r"unknown method 'wgate'\. Did you mean 'wgates'\?"),
        ({"device": "simulate"}, r"unknown device 'simulate'\. Did you mean 'simulated'\?"),
        ({"options": {"flor": 1}, "method": "greedy"}, r"method greedy: unknown key 'flor'\. Did you mean 'floor'\?"),
        ({"latency": "sixty%"}, "is not a percentage"),
        ({"latency": None}, "a budget is either"),
        ({"tile": 999}, "no channel group of"),
    ],
)
def test_wrong_options_are_named(search: Search, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        search(**options)


def test_a_full_disk_is_said_and_the_run_goes_on(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    from hwprune.core import files
    from hwprune.core.errors import DeviceError

    real, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise OSError(28, os.strerror(28))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(DeviceError, match="No space left") as caught:
            search()
        assert "the same command" in caught.value.hint
    check_pass(search(), 0.6)


def test_a_finetuning_that_dies_leaves_the_run_as_it_was(
    search: Search, dense: nn.Module, few_digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = search()
    files = {name: (run.folder / name).read_bytes() for name in ("model.onnx", "best.safetensors", "result.json")}

    def killed(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(refine, "verify", killed)
    with pytest.raises(KeyboardInterrupt):
        api.finetune(run.folder, epochs=0.5, data=few_digits, build=lambda: copy.deepcopy(dense))
    assert {name: (run.folder / name).read_bytes() for name in files} == files


def test_the_smallest_reachable_latency_is_reachable(search: Search, tmp_path: Path) -> None:
    smallest_ms = search(latency="2%").result.smallest_ms
    assert smallest_ms is not None
    run = search(latency=None, latency_ms=1.01 * smallest_ms, run_dir=tmp_path / "least")
    assert run.verdict in ("pass", "miss")
    assert run.result.measured_ms is not None
    assert run.result.measured_ms < 1.03 * smallest_ms


def test_what_a_method_finds_infeasible_is_a_result(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest network was measured to meet the budget: what the method says after training ends no run."""

    def refused(*args: Any, **options: Any) -> None:
        raise BudgetInfeasible("no network of this space is predicted within 0.1 ms", smallest_ms=0.2)

    monkeypatch.setattr(attempts, "settle", refused)
    run = search()
    assert run.verdict == read_json(run.folder / "result.json")["verdict"] == "infeasible"
    assert run.result.smallest_ms == RunData.read(run.folder).result.measurements["smallest"].latency_ms
    assert any("is predicted within 0.1 ms" in text for text in run.result.warnings)


def test_a_run_does_not_depend_on_the_runs_before_it(search: Search, tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    first, other, again = (
        search(run_dir=tmp_path / name, tables=tables, method=method, latency=latency)
        for name, method, latency in (("a", "greedy", "60%"), ("b", "uniform", "45%"), ("c", "greedy", "60%"))
    )
    found, expected = (read_json(item.folder / "answer" / "answer.json") for item in (again, first))
    assert found == expected
    assert other.result.widths != first.result.widths


@pytest.mark.slow  # the README's example and its main command do the same in every run
@pytest.mark.timed
@pytest.mark.timeout(900)  # it waits for quiet moments of the machine
def test_on_this_machine(search: Search) -> None:
    """Real measurements through ONNX Runtime. Timings are noisy: the verdict is checked, not the milliseconds."""
    run = search(device="cpu", latency="60%", method="greedy", samples=40)
    result = run.result
    assert not result.simulated
    assert result.verdict in ("pass", "miss")
    if result.verdict == "pass":
        check_pass(run, 0.6)
    assert result.comparison is not None
    assert result.comparison.ratio < 0.75
    assert json.loads((run.folder / "result.json").read_text())["simulated"] is False
    assert time.time() - (run.folder / "result.json").stat().st_mtime < 3600
