"""Invariants 3, 7, 8 and 10 of GDP: which gates close, that every gate is 0 or open in the end, and resuming."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gdp_states import QUICK, solved, trained
from resumed_search import check_resumes

from hwprune.core.errors import public_class
from hwprune.core.events import Caution, Event, SearchStep
from hwprune.methods import _gdp_search
from hwprune.methods._gdp_gates import (
    START,
)
from hwprune.methods._gdp_search import NotPolarised, PolarisingSearch
from hwprune.methods.gdp import GDP
from hwprune.testing.methods import tiny_problem
from hwprune.testing.networks import FAMILIES

every_family = pytest.mark.parametrize("name", FAMILIES)


def test_3_without_pressure_no_gate_ever_becomes_zero() -> None:
    problem = tiny_problem(budget=1.0)
    for how in ("secant", "tangent"):
        search = trained(problem, task_gradient=how)
        assert all(bool((theta.detach() > 0).all()) for theta in search.gates.theta)
        assert search.pressure == 0.0


def test_3_undefended_gates_all_reach_zero_after_the_steps_that_the_pressure_needs() -> None:
    """All that may: the least widths stay. The target is so low that the pressure never stops."""
    problem = replace(tiny_problem(budget=0.5), plan=replace(tiny_problem().plan, epochs=10))
    search = PolarisingSearch(problem, GDP(boost=0.0, warmup=0.0, saliency_images=0, hold=0.8, travel=4.2))
    search.target = 0.01
    needed = math.ceil(START / search._speed - 1e-9)
    assert needed == 12
    for step in range(1, needed + 1):
        assert all(bool((theta.detach() > 0).all()) for theta in search.gates.theta)
        search.seen = step
        search._press(step / search.steps)
    assert search.gates.counts() == [allowed[0] for allowed in problem.space.widths]


@pytest.mark.parametrize("share", [0.2, 0.9, 1.1, 5.0])
def test_7_a_gate_closes_exactly_when_its_benefit_is_below_the_critical_one(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search's own steps with known benefits and prices, and a target so low that it never stops pressing."""
    problem = tiny_problem("chain", 0.6)
    search = PolarisingSearch(problem, GDP(boost=0.0, warmup=0.0))
    level, prices = 0.03, np.array([0.5, 1.0, 1.5])
    search.steps, search.target, search.has_prior = 200, 0.01, True
    monkeypatch.setattr(_gdp_search, "critical_pressure", lambda *_: level)
    monkeypatch.setattr(search.prices, "weights", lambda: prices)
    for square, price in zip(search.square, prices, strict=True):
        square.copy_(share * level * price * (1 + 1e-6 * torch.arange(len(square))))
    gate_optimizer = search.optimizers()[-1]
    for step in range(400):
        search._set_gate_rate(step / 400)
        gate_optimizer.zero_grad()
        before = [theta.detach().clone() for theta in search.gates.theta]
        pairs = zip(search.benefits(), search.gates(), strict=True)
        torch.stack([-(benefit * gate).sum() for benefit, gate in pairs]).sum().backward()
        gate_optimizer.step()
        search._limit_moves(before)
        search._press(search.options.hold)
    least = [allowed[0] for allowed in problem.space.widths]
    assert search.gates.counts() == (least if share < 1 else [group.units for group in problem.space.groups])


@every_family
def test_8_every_gate_is_zero_or_open_at_the_end(name: str) -> None:
    search = trained(tiny_problem(name, 0.9))
    for occupancy in search.gates.occupancy():
        assert bool(((occupancy == 0) | (occupancy > 0.99)).all())
    search.check_polarised()


def test_8_a_gate_in_between_is_an_error() -> None:
    search = trained(tiny_problem(budget=0.7))
    with torch.no_grad():
        search.gates.theta[0][0] = 0.5 * float(search.gates.eps) ** 0.5
    with pytest.raises(NotPolarised, match=r"not polarised: 1 of \d+ lie between 0 and 0.99 after 12 steps") as caught:
        search.final_state()
    assert "more epochs" in caught.value.hint
    assert caught.value.exit_code == 1


def test_8_a_hold_that_ends_too_early_is_an_error_if_the_user_says_so(tmp_path: Path) -> None:
    problem = replace(tiny_problem(budget=0.5), checkpoint=tmp_path)
    with pytest.raises(NotPolarised, match=r"the gates reached \d+ % of the dense cost when the hold ended") as caught:
        solved(problem, travel=0.1, late="error")
    assert "travel" in caught.value.hint
    events: list[Event] = []
    answer = solved(replace(tiny_problem(budget=0.5), on_event=events.append), travel=0.1)
    assert answer.predicted_ms <= problem.target_ms
    (caution,) = (event for event in events if isinstance(event, Caution))
    assert "closed at once" in caution.text


def test_10_the_checkpoint_has_eps_pressure_and_the_log_of_closings() -> None:
    problem = tiny_problem(budget=0.5)
    first = trained(problem)
    second = PolarisingSearch(replace(problem, seed=7), GDP())
    second.load_state(first.state())
    assert float(second.gates.eps) == float(first.gates.eps) < 1e-3
    assert (second.seen, second.settled_at, second.pressure) == (first.seen, first.settled_at, first.pressure)
    for mine, other in zip(first.closed_at, second.closed_at, strict=True):
        assert torch.equal(mine, other)
    closed = torch.cat([at[at >= 0] for at in first.closed_at])
    assert len(closed)
    assert float(closed.max()) <= first.settled_at


@pytest.mark.parametrize(
    ("name", "options"), [("resnet_option_b", {}), ("chain", {"task_gradient": "tangent", "saliency_images": 0})]
)
def test_10_a_resumed_search_repeats_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    check_resumes(GDP(**{**QUICK, **options}), tiny_problem(name, 0.5), tmp_path, 3, 8)


@every_family
def test_whatever_the_pressure_no_group_loses_all_units(name: str) -> None:
    problem = tiny_problem(name, 0.9)
    search = PolarisingSearch(problem, GDP(travel=1e3, saliency_images=0, warmup=0.0))
    for step in range(1, 4):
        search.seen = step
        search._press(step / search.steps)
        counts = search.gates.counts()
        assert all(count >= allowed[0] for count, allowed in zip(counts, problem.space.widths, strict=True))
    assert search.cost() <= search.target


def test_a_network_without_any_benefit_is_called_collapsed() -> None:
    problem = tiny_problem(budget=0.6)
    search = PolarisingSearch(problem, GDP())
    with pytest.raises(NotPolarised, match="no unit has any influence on the loss") as caught:
        search._settle()
    assert (public_class(caught.value), caught.value.exit_code) == ("MethodGaveUp", 1)


def test_theta_is_never_decayed_and_closed_units_keep_their_weights() -> None:
    problem = tiny_problem(budget=0.6)
    problem = replace(problem, plan=replace(problem.plan, weight_decay=0.5))
    search = PolarisingSearch(problem, GDP(warmup=0.9, hold=0.95, anneal=1.0))
    gates = search.optimizers()[-1].param_groups
    assert all(group["weight_decay"] == 0 and group["momentum"] == 0 for group in gates)
    group, closed = problem.space.groups[0], 2
    with torch.no_grad():
        search.gates.theta[0][closed] = 0.0
    before = {name: value.detach().clone() for name, value in search.model.named_parameters()}
    search.loss(*problem.data.batch("train", torch.arange(8)), progress=0.0).backward()
    for optimizer in search.optimizers():
        optimizer.step()
    after = dict(search.model.named_parameters())
    pieces = (*problem.graph.producer_slices(group.name), *problem.graph.consumer_slices(group.name))
    for piece in (piece for piece in pieces if before[piece.parameter].ndim > 1):
        positions = torch.from_numpy(piece.positions[piece.units == closed])
        old, new = (tensors[piece.parameter].index_select(piece.dim, positions) for tensors in (before, after))
        assert torch.equal(old, new)
    assert all(bool((theta.detach()[theta.detach() != 0] == START).all()) for theta in search.gates.theta)


def test_units_closed_last_come_back_first() -> None:
    problem = tiny_problem("chain", 0.5)
    search = trained(replace(problem, plan=replace(problem.plan, epochs=4)))
    scores = search.unit_scores()
    pairs = 0
    for name, at in zip(problem.space.names, search.closed_at, strict=True):
        closed, score = at.numpy() >= 0, scores[name]
        if closed.any() and not closed.all():
            assert score[closed].max() <= score[~closed].min()
            order = np.argsort(at.numpy()[closed], kind="stable")
            rises = np.diff(score[closed][order])[np.diff(at.numpy()[closed][order]) > 0]
            assert bool((rises >= 0).all())
            pairs += len(rises)
    assert pairs > 0


def test_search_events_tell_pressure_eps_and_the_share_in_between() -> None:
    events: list[Event] = []
    solved(replace(tiny_problem(budget=0.6), on_event=events.append), report_every=3)
    steps = [event for event in events if isinstance(event, SearchStep)]
    assert [step.step for step in steps] == [3, 6, 9, 12]
    assert set(steps[0].metrics) == {"pressure", "eps", "open_share", "between_share", "cost"}
    assert steps[-1].metrics["between_share"] == 0.0
    assert steps[-1].metrics["pressure"] == 0.0
    assert steps[-1].metrics["eps"] < steps[0].metrics["eps"] == pytest.approx(0.1)


def test_a_closed_unit_ranks_below_an_open_one_without_benefit() -> None:
    ranked = _gdp_search._ranked(np.array([3.0, 2.0, 0.0, -1.0, 1.0]), np.array([10, -1, -1, -1, 12]))
    assert list(np.argsort(-ranked, kind="stable")) == [1, 2, 3, 4, 0], "open by benefit, closed by how late"
    assert len(set(ranked)) == 5
