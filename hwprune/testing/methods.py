"""The conformance suite of pruning methods, small problems to pose them, and an exact staircase in place of a device.

A new method in `hwprune/methods/` gets its tests with
`class TestMine(MethodConformance): method = "mine"`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwprune import methods
from hwprune.core.errors import BudgetInfeasible, UsageError
from hwprune.core.events import Event
from hwprune.core.widths import Limits, SearchSpace
from hwprune.graph import ChannelGraph, cut, mask, trace
from hwprune.latency.features import Array, IntArray, restrict
from hwprune.latency.limited import LimitedLatency
from hwprune.latency.models._base import AbstractLatencyModel, Fitted
from hwprune.latency.samples import Samples
from hwprune.methods import AbstractMethod, Answer, Problem
from hwprune.methods._questions import predicted
from hwprune.testing.networks import build
from hwprune.training._plan import TrainPlan
from hwprune.training.data import ArraySet, Data
from hwprune.training.tasks import Classification

_FIXED_MS = 0.01
_MACS_A_MS = 2e6
_ELEMENTS_A_MS = 1e6


@dataclass(eq=False)
class StaircaseLatency(AbstractLatencyModel):
    """Known latency without a device: channels cost as much as the next multiple of `tile`, layers add up."""

    tile: int = 4

    @classmethod
    def of(cls, graph: ChannelGraph, space: SearchSpace, tile: int = 4) -> StaircaseLatency:
        """The staircase of a traced network."""
        model = cls(tile)
        operators = restrict(graph.op_templates, space, graph.dense())
        model._fitted = Fitted(space, operators, tile, None, 0, space.widths, 0.0, 0.0)
        return model

    def train(self, samples: Samples, seed: int) -> None:
        """There is nothing to learn."""

    def predict_batch(self, values: IntArray) -> Array:
        """Milliseconds `[B]` for widths `[B, G]`: multiply-accumulates and activations, rounded up to the tile."""
        work = self.fitted.work.layers(values)
        elements = (work.reads + work.writes).sum(axis=1)
        return np.asarray(_FIXED_MS + work.macs.sum(axis=1) / _MACS_A_MS + elements / _ELEMENTS_A_MS)

    def spread_batch(self, values: IntArray) -> Array:
        """Zeros: it is exact."""
        return np.zeros(len(values))

    def state(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def restore(self, state: Mapping[str, Any], fitted: Fitted) -> None:
        """Nothing to take back."""


class OneTensor(nn.Module):
    """Any network of `hwprune.testing.networks` as a classifier: one input, all outputs flattened to logits."""

    def __init__(self, network: nn.Module, inputs: int) -> None:
        super().__init__()
        self.network = network
        self.inputs = inputs

    def forward(self, images: Tensor) -> Tensor:
        """`(N, C, H, W)` -> `(N, outputs)`; each further input is the image, scaled."""
        outputs = self.network(*(images * (1 + place) for place in range(self.inputs)))
        if isinstance(outputs, Mapping):
            outputs = tuple(outputs.values())
        parts = outputs if isinstance(outputs, tuple) else (outputs,)
        return torch.cat([part.flatten(1) for part in parts], dim=1)


@dataclass(frozen=True, eq=False)
class Family:
    """A traced network of one family with data it can classify."""

    model: nn.Module
    graph: ChannelGraph
    data: Data


@cache
def family(name: str) -> Family:
    """The network of a family with 48 random training images, traced once a process."""
    network, example = build(name)
    model = OneTensor(network, len(example)).eval()
    graph = trace(model, example[0])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        images = torch.randn(64, *example[0].shape[1:])
        classes = model(example[0]).shape[1]
        targets = torch.randint(0, classes, (64,))
    train, val, test = (ArraySet(images[at], targets[at]) for at in (slice(48), slice(48, 56), slice(56, 64)))
    channels = images.shape[1]
    return Family(model, graph, Data(name, train, val, test, classes, (0.0,) * channels, (1.0,) * channels))


def tiny_problem(name: str = "resnet_option_b", budget: float = 0.6, *, seed: int = 0, tile: int = 4) -> Problem:
    """Cut the network of a family to `budget` (a fraction) of its simulated dense latency; 12 training steps."""
    made = family(name)
    space = made.graph.space(tile=tile, min_keep=0.25)
    latency = StaircaseLatency.of(made.graph, space, tile)
    dense_ms = float(latency.predict_batch(np.array([space.dense().values_tuple()]))[0])
    plan = TrainPlan(epochs=2, batch_size=8, lr=0.01, schedule="constant")
    return Problem(
        made.model,
        made.graph,
        space,
        latency,
        dense_ms,
        budget * dense_ms,
        made.data,
        Classification(),
        plan,
        seed,
    )


class MethodConformance:
    """What every method owes the search. Subclass it and set `method`, and `options` to make it quick."""

    method: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    families: ClassVar[tuple[str, ...]] = ("chain", "mobilenetv2", "densenet")

    @classmethod
    def make(cls) -> AbstractMethod:
        return methods.load(cls.method)(**cls.options)

    def solve(self, problem: Problem) -> Answer:
        return list(self.make().search(problem))[-1]

    def test_ends_within_the_target(self) -> None:
        for budget in (0.9, 0.7, 0.5):
            problem = tiny_problem(budget=budget)
            self.check(problem, self.solve(problem), problem.target_ms)

    def test_works_on_other_wirings(self) -> None:
        for name in self.families:
            problem = tiny_problem(name, 0.7)
            self.check(problem, self.solve(problem), problem.target_ms)

    def test_keeps_everything_when_everything_fits(self) -> None:
        problem = tiny_problem(budget=1.0)
        assert self.solve(problem).widths == problem.space.dense()

    def test_same_seed_same_answer(self) -> None:
        first, second = self.solve(tiny_problem()), self.solve(tiny_problem())
        assert first.widths == second.widths
        assert first.keep == second.keep
        for group, scores in first.scores.items():
            np.testing.assert_array_equal(scores, second.scores[group])
        assert (first.state is None) == (second.state is None)
        for name, value in (first.state or {}).items():
            assert torch.equal(value, (second.state or {})[name])

    def test_refuses_numbers_that_make_no_sense(self) -> None:
        kind = type(self.make())
        for item in fields(kind):  # type: ignore[arg-type]  # every method is a dataclass
            if isinstance(item.default, bool) or not isinstance(item.default, int | float):
                continue
            for value in (-1, -1.0, math.nan, math.inf)[: 1 if isinstance(item.default, int) else None]:
                with pytest.raises(UsageError, match=rf"\b{item.name}\b.* not |{item.name}="):
                    kind(**{item.name: value})

    def test_leaves_the_model_as_it_was(self) -> None:
        problem = tiny_problem()
        before = {name: value.clone() for name, value in problem.model.state_dict().items()}
        self.solve(problem)
        assert not any(module.training for module in problem.model.modules())
        assert all(parameter.grad is None and parameter.requires_grad for parameter in problem.model.parameters())
        assert all(torch.equal(value, before[name]) for name, value in problem.model.state_dict().items())

    def test_refuses_an_infeasible_budget_before_any_training(self) -> None:
        events: list[Event] = []
        problem = replace(tiny_problem(budget=0.01), on_event=events.append)
        with pytest.raises(BudgetInfeasible, match=r"no network of this space is predicted within") as caught:
            self.solve(problem)
        smallest = predicted(problem.latency, problem.space.smallest())
        assert caught.value.smallest_ms == pytest.approx(smallest)
        assert events == []

    def test_reaches_the_smallest_network_when_only_that_fits(self) -> None:
        problem = tiny_problem()
        smallest = predicted(problem.latency, problem.space.smallest())
        answer = self.solve(replace(problem, target_ms=smallest))
        assert answer.widths == problem.space.smallest()

    def test_refits_to_tighter_and_looser_targets(self) -> None:
        problem = tiny_problem(budget=0.6)
        answer = self.solve(problem)
        for factor in (0.8, 0.95, 1.05, 1.3):
            target_ms = factor * problem.target_ms
            refitted = self.make().refit(problem, answer, target_ms)
            self.check(problem, refitted, target_ms)
            assert refitted.image_passes == answer.image_passes
        looser = self.make().refit(problem, answer, 1.3 * problem.target_ms)
        assert looser.predicted_ms > answer.predicted_ms
        with pytest.raises(BudgetInfeasible, match="the fastest needs"):
            self.make().refit(problem, answer, 0.01 * problem.target_ms)

    def test_keeps_limits_beside_the_latency(self) -> None:
        problem = tiny_problem(budget=0.9)
        graph, dense = problem.graph, problem.space.dense()
        limits = Limits(params=int(0.6 * graph.params(dense)), macs=int(0.7 * graph.macs(dense)))
        latency = LimitedLatency(problem.latency, graph, limits, problem.target_ms)
        limited = replace(problem, latency=latency, dense_ms=predicted(latency, dense))
        answer = self.solve(limited)
        self.check(limited, answer, problem.target_ms)
        assert graph.params(answer.widths) <= 0.6 * graph.params(dense)
        assert graph.macs(answer.widths) <= 0.7 * graph.macs(dense)
        assert predicted(problem.latency, answer.widths) <= problem.target_ms

    def test_every_option_is_explained(self) -> None:
        for option in fields(self.make()):  # type: ignore[arg-type]
            assert option.metadata.get("help"), option.name

    def check(self, problem: Problem, answer: Answer, target_ms: float) -> None:
        """Within the target, on the grid, keep and widths in agreement, and the cut network computes what it should."""
        problem.space.check(answer.widths)
        assert answer.predicted_ms <= target_ms
        assert answer.predicted_ms == pytest.approx(predicted(problem.latency, answer.widths))
        assert tuple(answer.keep) == problem.space.names
        for group in problem.space.groups:
            kept = answer.keep[group.name]
            assert list(kept) == sorted(set(kept))
            assert len(kept) == answer.widths[group.name]
            assert set(kept) <= set(range(group.units))
            assert answer.scores[group.name].shape == (group.units,)
            assert np.isfinite(answer.scores[group.name]).all()
        self.check_surgery(problem, answer)

    def check_surgery(self, problem: Problem, answer: Answer) -> None:
        """Cut and masked network agree, with the answer's own weights."""
        full = family(problem.data.name).model if answer.state is None else _with_state(problem, answer.state)
        images = problem.data.val.images
        with torch.no_grad():
            masked = mask(full, problem.graph, answer.keep)(images)
            small = cut(full, problem.graph, answer.keep)(images)
        assert float((masked - small).abs().max()) < 1e-5


def _with_state(problem: Problem, state: Mapping[str, Tensor]) -> nn.Module:
    network, example = build(problem.data.name)
    model = OneTensor(network, len(example)).eval()
    model.load_state_dict(dict(state))
    return model
