"""Candidates whose outputs are not finite: passed over once, never evaluated again, and the same after any stop."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from hwprune.core.errors import Interrupted, TrainingDiverged
from hwprune.core.events import Caution, Event, Progress
from hwprune.core.widths import Widths
from hwprune.methods import Problem
from hwprune.methods._metapruning_net import PruningNet
from hwprune.methods._metapruning_sampler import DIVERGED, diverged
from hwprune.methods._metapruning_search import Candidate, Evolution, Judge
from hwprune.methods._saliency import weight_norm
from hwprune.methods.metapruning import MetaPruning
from hwprune.testing.methods import tiny_problem

QUICK: dict[str, Any] = {"evaluations": 16, "population": 4, "parents": 3}


class Fragile(Judge):
    """A known fitness, which some structures do not have; keeps what it was asked, in order."""

    def __init__(self, problem: Problem, breaks: Callable[[Widths], bool]) -> None:
        scores = weight_norm(problem.model, problem.graph, problem.space, "l1")
        net = PruningNet(problem.model, problem.graph, problem.space, scores, hidden=0)
        super().__init__(problem, net, "score", 32)
        self.breaks = breaks
        self.asked: list[Widths] = []

    def __call__(self, widths: Widths) -> float:
        self.asked.append(widths)
        if self.breaks(widths):
            raise TrainingDiverged("not finite", hint="lower --lr")
        return float(sum(width**0.5 for width in widths.values()))


def third(widths: Widths) -> bool:
    """About every third structure."""
    return sum(widths.values()) % 3 == 0


def evolution(problem: Problem, **options: Any) -> Evolution:
    scores = weight_norm(problem.model, problem.graph, problem.space, "l1")
    return Evolution(problem, MetaPruning(**{**QUICK, **options}), scores)


def problem_with(*, storage: str, folder: Path, **changes: Any) -> tuple[Problem, dict[str, Any]]:
    """A problem whose study lies in `folder`, and the option that says so."""
    problem = replace(tiny_problem("chain", 0.6, tile=1), **changes)
    if storage == "journal":
        return replace(problem, study=folder / "study.log"), {}
    return problem, {"storage": f"sqlite:///{folder}/study.db"}


def test_a_candidate_that_diverges_is_passed_over_and_does_not_come_again() -> None:
    events: list[Event] = []
    problem = replace(tiny_problem("chain", 0.6, tile=1), on_event=events.append)
    judge, search = Fragile(problem, third), evolution(problem)
    candidates = search.run(judge)
    broken = [widths for widths in judge.asked if third(widths)]
    assert len(broken) >= 3
    assert len(set(judge.asked)) == len(judge.asked) == search.evaluated == 16
    assert not set(broken) & {candidate.widths for candidate in candidates}
    assert len(candidates) == 16 - len(broken)
    cautions = [event for event in events if isinstance(event, Caution)]
    assert [(event.text, event.hint) for event in cautions] == [
        ("a candidate was passed over: not finite", "lower --lr")
    ] * len(broken)
    assert [event.done for event in events if isinstance(event, Progress)] == list(range(1, 17))


@pytest.mark.parametrize("sampler", ["random", "nsga2", "tpe"])
def test_so_it_is_with_every_sampler(sampler: str) -> None:
    problem = tiny_problem("chain", 0.6, tile=1)
    judge = Fragile(problem, third)
    search = evolution(problem, sampler=sampler)
    assert 0 < len(search.run(judge)) < 16
    assert len(set(judge.asked)) == len(judge.asked) == search.evaluated == 16


@pytest.mark.parametrize("storage", ["journal", "sqlite"])
def test_12_a_search_with_diverged_candidates_goes_on_bit_for_bit(storage: str, tmp_path: Path) -> None:
    undisturbed = tiny_problem("chain", 0.6, tile=1)
    judge = Fragile(undisturbed, third)
    whole = evolution(undisturbed).run(judge)
    calls = itertools.count(1)
    problem, options = problem_with(storage=storage, folder=tmp_path, stop=lambda: next(calls) % 5 == 0)
    asked: list[Widths] = []
    found: tuple[Candidate, ...] = ()
    while not found:
        again = Fragile(problem, third)
        try:
            found = evolution(problem, **options).run(again)
        except Interrupted:
            assert len(again.asked) == 5
        asked += again.asked
    assert found == whole
    assert asked == judge.asked
    assert any(map(third, asked[:5]))


def test_12_killed_between_the_mark_and_the_end_of_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = tiny_problem("chain", 0.6, tile=1)
    judge = Fragile(undisturbed, third)
    whole = evolution(undisturbed).run(judge)
    problem, _ = problem_with(storage="journal", folder=tmp_path)
    tell = optuna.Study.tell

    def die_at_a_failure(self: optuna.Study, *args: Any, **options: Any) -> Any:
        if options.get("state") == TrialState.FAIL:
            raise KeyboardInterrupt
        return tell(self, *args, **options)

    first = Fragile(problem, third)
    with monkeypatch.context() as patched:
        patched.setattr(optuna.Study, "tell", die_at_a_failure)
        with pytest.raises(KeyboardInterrupt):
            evolution(problem).run(first)
    second = Fragile(problem, third)
    assert evolution(problem).run(second) == whole
    assert first.asked + second.asked == judge.asked


def test_several_in_a_row_end_the_search_and_the_same_command_goes_on(tmp_path: Path) -> None:
    problem, _ = problem_with(storage="journal", folder=tmp_path)
    calls = iter(range(100))
    judge = Fragile(problem, lambda widths: next(calls) >= 6)
    with pytest.raises(TrainingDiverged, match="5 candidates in a row had no finite outputs; the last: not finite"):
        evolution(problem).run(judge)
    assert len(judge.asked) == 6 + 5
    again = Fragile(problem, lambda widths: False)
    search = evolution(problem)
    assert (len(search.fitness), len(diverged(search.study))) == (6, 5)
    assert len(search.run(again)) == 16 - 5
    assert not set(again.asked) & set(judge.asked)
    failed = [trial for trial in search.study.trials if trial.state == TrialState.FAIL]
    assert all(trial.user_attrs[DIVERGED] and trial.value is None for trial in failed)


def test_when_all_diverge_there_is_no_answer() -> None:
    problem = tiny_problem("chain", 0.6, tile=1)
    with pytest.raises(TrainingDiverged, match="not finite for any of 3 candidates") as caught:
        evolution(problem, evaluations=3).run(Fragile(problem, lambda widths: True))
    assert "lower --lr" in caught.value.hint
