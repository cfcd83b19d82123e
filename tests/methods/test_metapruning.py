"""The method as a whole: from a problem to an answer, with kills, a device, and every way to end."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from hwprune.core.errors import Interrupted, RunError, TrainingDiverged, UsageError
from hwprune.core.events import Caution, EpochDone, Event, Note, Progress, SearchStep
from hwprune.core.widths import Widths
from hwprune.graph import cut
from hwprune.methods import Answer, Problem
from hwprune.methods._metapruning_net import PruningNet
from hwprune.methods._metapruning_search import Evolution, Judge
from hwprune.methods._saliency import weight_norm
from hwprune.methods.metapruning import MetaPruning, _warn_if_not_ready
from hwprune.testing.methods import tiny_problem

QUICK: dict[str, Any] = {"hidden": 2, "evaluations": 12, "population": 4, "parents": 3, "recalibration_images": 32}


def small_problem(budget: float = 0.6, *, seed: int = 0) -> Problem:
    """Three groups with 1120 structures."""
    return tiny_problem("chain", budget, seed=seed, tile=1)


def solve(problem: Problem, **options: Any) -> Answer:
    return list(MetaPruning(**{**QUICK, **options}).search(problem))[-1]


def in_folder(problem: Problem, folder: Path) -> Problem:
    return replace(problem, checkpoint=folder / "checkpoints", study=folder / "study.log")


def genes_of(study: Path) -> list[tuple[int, ...]]:
    """The parameters of the complete trials, as stock Optuna reads them."""
    backend = optuna.storages.journal.JournalFileBackend(str(study))
    loaded = optuna.load_study(study_name=None, storage=optuna.storages.journal.JournalStorage(backend))
    complete = loaded.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    return [tuple(trial.params[name] for name in sorted(trial.params)) for trial in complete]


def equal(one: Answer, other: Answer) -> bool:
    assert one.state is not None
    assert other.state is not None
    same = all(torch.equal(value, other.state[name]) for name, value in one.state.items())
    return same and (one.widths, one.keep, one.image_passes) == (other.widths, other.keep, other.image_passes)


@dataclass(frozen=True)
class Whole:
    """An uninterrupted search, its candidates and its folder, which tests copy."""

    answer: Answer
    genes: list[tuple[int, ...]]
    folder: Path

    def copied(self, to: Path) -> Problem:
        """The problem whose finished search lies in a folder of the test's own."""
        shutil.copytree(self.folder, to, dirs_exist_ok=True)
        return in_folder(small_problem(), to)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    return Whole(solve(in_folder(small_problem(), folder)), genes_of(folder / "study.log"), folder)


def test_12_a_search_stopped_anywhere_goes_on_bit_for_bit(whole: Whole, tmp_path: Path) -> None:
    answer, genes = whole.answer, whole.genes
    problem = in_folder(small_problem(), tmp_path)
    messages = []
    while True:
        asked = iter(range(100))

        def after_five(asked: Any = asked) -> bool:
            return next(asked) >= 4

        try:
            resumed = solve(replace(problem, stop=after_five))
            break
        except Interrupted as stopped:
            messages.append(f"{stopped.message}; {stopped.hint}")
    assert len(messages) > 3
    assert all("the same command goes on from there" in message for message in messages)
    assert any("stopped after step" in message for message in messages)
    assert any("of 12 candidates" in message for message in messages)
    assert equal(resumed, answer)
    assert genes_of(tmp_path / "study.log") == genes


def _search_until_killed(folder: Path, at: int) -> None:
    evaluated = 0

    def listen(event: Event) -> None:
        nonlocal evaluated
        evaluated += isinstance(event, Progress) and event.detail == "candidates"
        if evaluated == at:
            os.kill(os.getpid(), signal.SIGKILL)

    solve(replace(in_folder(small_problem(), folder), on_event=listen))


def test_12_a_search_killed_in_the_evolution_goes_on_bit_for_bit(whole: Whole, tmp_path: Path) -> None:
    answer, genes = whole.answer, whole.genes
    child = multiprocessing.get_context("fork").Process(target=_search_until_killed, args=(tmp_path, 6))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert genes_of(tmp_path / "study.log") == genes[:6]
    assert equal(solve(in_folder(small_problem(), tmp_path)), answer)


def test_12_on_a_database_too(whole: Whole, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    problem = replace(small_problem(), checkpoint=tmp_path / "checkpoints")
    asked = iter(range(100))
    with pytest.raises(Interrupted, match=r"stopped after \d+ of 12 candidates"):
        solve(replace(problem, stop=lambda: next(asked) >= 17), storage=storage)
    assert equal(solve(problem, storage=storage), whole.answer)


def test_a_finished_search_repeats_nothing(whole: Whole, tmp_path: Path) -> None:
    problem = whole.copied(tmp_path)
    events: list[Event] = []
    assert equal(solve(replace(problem, on_event=events.append)), whole.answer)
    assert not [event for event in events if isinstance(event, Progress | SearchStep)]


def test_a_study_of_another_search_is_refused(whole: Whole, tmp_path: Path) -> None:
    problem = replace(whole.copied(tmp_path), checkpoint=None)
    others: list[tuple[Problem, dict[str, Any], str]] = [
        (replace(tiny_problem("chain", tile=2), study=problem.study), {}, "space: "),
        (replace(problem, seed=1), {}, "seed: 0 there, 1 now"),
        (replace(problem, target_ms=0.7 * problem.dense_ms), {}, "target_ms: "),
        (replace(problem, target_ms=0.99 * problem.target_ms), {}, "target_ms: "),
        (problem, {"fitness": "score"}, "fitness: loss there, score now"),
    ]
    events: list[Event] = []
    for other, options, message in others:
        with pytest.raises(RunError, match=f"belongs to another search.*{message}"):
            solve(replace(other, on_event=events.append), **options)
    assert not [event for event in events if isinstance(event, EpochDone)]  # refused before any training
    with pytest.raises(RunError, match="were scored by another PruningNet"):
        solve(problem, hidden=3)


def test_one_storage_holds_several_searches(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    few = {"storage": url, "evaluations": 4, "population": 2}
    first = solve(small_problem(), **few)
    tighter = solve(small_problem(0.55), **few)
    larger = solve(small_problem(), **few, hidden=3)
    again = solve(small_problem(), **few, measured=0, weights="dense")
    assert equal(first, solve(small_problem(), **{**few, "storage": ""}))
    assert tighter.predicted_ms <= small_problem(0.55).target_ms
    assert larger.log is not None
    assert again.widths == first.widths
    names = optuna.get_all_study_names(url)
    assert len(set(names)) == 3
    assert all(name.startswith("metapruning-") for name in names)


def test_the_command_that_shows_the_candidates_is_said(tmp_path: Path) -> None:
    events: list[Event] = []
    problem = replace(small_problem(), on_event=events.append)
    scores = weight_norm(problem.model, problem.graph, problem.space, "l1")
    Evolution(problem, MetaPruning(**QUICK), scores)
    assert "optuna-dashboard" not in str(events)
    Evolution(replace(problem, study=tmp_path / "study.log"), MetaPruning(**QUICK), scores)
    assert Note(f"watch the candidates: optuna-dashboard {tmp_path}/study.log") in events


def test_the_best_candidate_wins_and_ties_go_to_the_earlier() -> None:
    problem = small_problem()
    options = MetaPruning(**{**QUICK, "evaluations": 20})
    candidates = evolved(problem, options, lambda widths: float(sum(widths.values()) // 20))
    values = [candidate.fitness for candidate in candidates]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) < len(values)
    assert all(candidate.predicted_ms <= problem.target_ms for candidate in candidates)
    assert len({candidate.gene for candidate in candidates}) == 20
    assert options._winner(problem, candidates) is candidates[0]


class FakeJudge(Judge):
    """A known fitness in place of a trained PruningNet."""

    def __init__(self, problem: Problem, fitness: Any) -> None:
        super().__init__(problem, pruning_net(problem), "score", 32)
        self.known = fitness

    def __call__(self, widths: Widths) -> float:
        return float(self.known(widths))


def pruning_net(problem: Problem, hidden: int = 0) -> PruningNet:
    scores = weight_norm(problem.model, problem.graph, problem.space, "l1")
    return PruningNet(problem.model, problem.graph, problem.space, scores, hidden=hidden)


def evolved(problem: Problem, options: MetaPruning, fitness: Any) -> tuple[Any, ...]:
    scores = weight_norm(problem.model, problem.graph, problem.space, "l1")
    return Evolution(problem, options, scores).run(FakeJudge(problem, fitness))


def test_15_the_best_are_measured_and_violators_dropped() -> None:
    measured: list[Sequence[Widths]] = []
    events: list[Event] = []

    def measure(candidates: Sequence[Widths]) -> list[float]:
        measured.append(candidates)
        return [1.02, 1.001, 0.99, 0.97, 0.96]

    problem = replace(small_problem(), measure=measure, on_event=events.append)
    options = MetaPruning(**{**QUICK, "measured": 5})
    candidates = evolved(problem, options, lambda widths: float(sum(widths.values())))
    assert options._winner(problem, candidates) is candidates[2]
    assert measured == [[candidate.widths for candidate in candidates[:5]]]
    assert any(isinstance(event, Note) and "3 of the best 5" in event.text for event in events)
    none = replace(problem, measure=lambda candidates: [1.1] * len(candidates))
    assert options._winner(none, candidates) is candidates[0]
    assert MetaPruning(**{**QUICK, "measured": 0})._winner(problem, candidates) is candidates[0]


def test_the_winner_starts_from_generated_from_dense_or_from_new_weights(whole: Whole) -> None:
    problem = small_problem()
    answers = {"generated": whole.answer, **{kind: solve(problem, weights=kind) for kind in ("dense", "scratch")}}
    assert len({answer.widths for answer in answers.values()}) == 1
    assert answers["dense"].state is None
    dense = problem.model.state_dict()
    for kind in ("generated", "scratch"):
        state = answers[kind].state
        assert state is not None
        assert {name: value.shape for name, value in state.items()} == {k: v.shape for k, v in dense.items()}
        assert not torch.equal(state["network.conv1.weight"], dense["network.conv1.weight"])
    fresh = answers["scratch"].state
    assert fresh is not None
    again = solve(problem, weights="scratch").state
    assert again is not None
    assert torch.equal(again["network.conv1.weight"], fresh["network.conv1.weight"])


@pytest.mark.parametrize("name", ["registered", "tied"])
def test_new_weights_of_a_tensor_with_two_names_can_be_saved(name: str) -> None:
    problem = tiny_problem(name, 0.7)
    state = solve(problem, weights="scratch", evaluations=4).state
    assert state is not None
    assert load(save(dict(state))).keys() == problem.model.state_dict().keys()
    assert all(
        torch.equal(state[first], state[other]) for first, names in problem.graph.aliases.items() for other in names
    )


def test_generated_weights_are_those_the_winner_was_scored_with(whole: Whole) -> None:
    problem, answer = small_problem(), whole.answer
    assert answer.state is not None
    full = small_problem().model
    before = {name: value.clone() for name, value in full.state_dict().items()}
    full.load_state_dict(dict(answer.state))
    small = cut(full, problem.graph, answer.keep)
    full.load_state_dict(before)
    assert sum(p.numel() for p in small.parameters()) == problem.graph.params(answer.widths)


def test_every_sampler_evaluates_the_same_number_of_candidates(whole: Whole, tmp_path: Path) -> None:
    assert len(set(whole.genes)) == len(whole.genes) == QUICK["evaluations"]
    for sampler in ("random", "nsga2", "tpe"):
        problem = replace(small_problem(), study=tmp_path / f"{sampler}.log")
        answer = solve(problem, sampler=sampler, hidden=0)
        assert answer.predicted_ms <= problem.target_ms
        found = genes_of(tmp_path / f"{sampler}.log")
        assert len(set(found)) == len(found) == QUICK["evaluations"]


def test_uniform_and_greedy_widths_can_go_in_first(tmp_path: Path) -> None:
    problem = replace(small_problem(0.7), study=tmp_path / "study.log")
    solve(problem, first="baselines", least_use=0.8)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log"))
    study = optuna.load_study(study_name=None, storage=optuna.storages.journal.JournalStorage(backend))
    operators = [trial.user_attrs["origin"]["operator"] for trial in study.trials]
    assert operators[:2] == ["baseline"] * 2
    assert set(operators[2:4]) == {"random"}


def test_the_study_says_what_a_candidate_is(whole: Whole, tmp_path: Path) -> None:
    problem = whole.copied(tmp_path)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log"))
    study = optuna.load_study(study_name=None, storage=optuna.storages.journal.JournalStorage(backend))
    for trial in study.trials:
        values = [trial.params[name] for name in sorted(trial.params)]
        widths = problem.space.make([allowed[v] for allowed, v in zip(problem.space.widths, values, strict=True)])
        assert [name[4:] for name in sorted(trial.params)] == list(problem.space.names)
        assert trial.user_attrs["macs"] == problem.graph.macs(widths)
        assert trial.user_attrs["latency_ms"] == pytest.approx(problem.latency.predict(widths).latency_ms)
        assert trial.constraints["latency_ms"] <= 0
    assert study.best_trial.value is not None
    assert study.user_attrs["hwprune"]["space"] == problem.space.signature()


def test_channels_go_in_the_order_that_was_asked_for() -> None:
    problem = small_problem(0.5)
    by_index = solve(problem, channels="index")
    assert all(kept == tuple(range(len(kept))) for kept in by_index.keep.values())
    by_norm = solve(problem, channels="l1")
    norms = weight_norm(problem.model, problem.graph, problem.space, "l1")
    for name, kept in by_norm.keep.items():
        best = np.argsort(-norms[name], kind="stable")[: len(kept)]
        assert kept == tuple(sorted(best.tolist()))
    taylor = solve(problem).scores
    for name, values in by_norm.scores.items():
        np.testing.assert_array_equal(np.sort(values), np.sort(taylor[name]))


def test_progress_is_told_in_generations() -> None:
    events: list[Event] = []
    solve(replace(small_problem(), on_event=events.append))
    steps = [event for event in events if isinstance(event, SearchStep)]
    assert [step.step for step in steps] == [4, 8, 12]
    best = [step.metrics["best_fitness"] for step in steps]
    assert best == sorted(best)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("PruningNet has" in text for text in notes)
    assert any("candidates are predicted at" in text and "of them fit" in text for text in notes)


def test_a_pruning_net_that_is_not_ready_is_said() -> None:
    events: list[Event] = []
    problem = replace(small_problem(), on_event=events.append)
    for middle in (0.3, 0.5):
        _warn_if_not_ready(problem, {"middle_score": middle, "dense_score": 0.9})
    assert [type(event) for event in events] == [Caution]
    assert "scores 0.300 at middle widths and 0.900 at full width" in str(events[0])


class Infinite(nn.Module):
    """A network whose outputs stop being finite when it is cut."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images) / 0  # type: ignore[no-any-return]


def test_outputs_that_are_not_finite_end_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = small_problem()
    judge = Judge(problem, pruning_net(problem), "loss", 32)
    monkeypatch.setattr(judge, "network", lambda widths: Infinite(problem.model))
    with pytest.raises(TrainingDiverged, match="generated weights give outputs that are not finite"):
        judge(problem.space.smallest())


def test_fitness_by_score_by_loss_and_by_distance() -> None:
    problem = small_problem()
    net = pruning_net(problem)
    found = {kind: Judge(problem, net, kind, 32)(problem.space.smallest()) for kind in ("score", "loss", "distance")}
    assert 0 <= found["score"] <= 1
    assert found["loss"] < 0
    assert found["distance"] < 0
    assert found["loss"] != found["distance"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "nsga"}, "sampler cannot be 'nsga'. Did you mean 'nsga2'"),
        ({"population": 1}, "population must be 2 or more, not 1"),
        ({"hidden": -1}, "hidden must be 0 or more, not -1"),
        ({"mutation": 1.5}, r"mutation must be a share between 0 and 1, not 1.5"),
        ({"memory_gb": float("nan")}, "memory_gb must be 0 or more, not nan"),
        ({"weights": "none"}, "weights cannot be 'none'"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MetaPruning(**options)


def test_a_network_that_cannot_start_at_random_says_which_module() -> None:
    with pytest.raises(UsageError, match=r"'network' \(Transformer\) has weights but no reset_parameters"):
        solve(tiny_problem("transformer", 0.7), warm_start=False)
