"""The conformance suite for every method of the package."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from hwprune import methods
from hwprune.core import config
from hwprune.core.errors import UsageError
from hwprune.methods._efficiency import Efficiency
from hwprune.testing.methods import MethodConformance, tiny_problem


class TestUniform(MethodConformance):
    method = "uniform"


class TestRandom(MethodConformance):
    method = "random"


class TestMagnitude(MethodConformance):
    method = "magnitude"


class TestGreedy(MethodConformance):
    method = "greedy"


class TestIterativeGreedy(MethodConformance):
    method = "greedy"
    options: ClassVar[dict[str, Any]] = {"stages": 3}


class TestWGates(MethodConformance):
    method = "wgates"


class TestMagnitudeL2(MethodConformance):
    method = "magnitude"
    options: ClassVar[dict[str, Any]] = {"score": "l2"}


class TestMagnitudeBatchNorm(MethodConformance):
    method = "magnitude"
    options: ClassVar[dict[str, Any]] = {"score": "bn"}


class TestKnapsack(MethodConformance):
    method = "knapsack"


class TestS2HPruner(MethodConformance):
    method = "s2hpruner"


class TestLearnedWidths(MethodConformance):
    method = "widths"


class TestSoftmaxWidths(MethodConformance):
    method = "widths"
    options: ClassVar[dict[str, Any]] = {"form": "softmax"}


class TestGDP(MethodConformance):
    method = "gdp"


class TestDHP(MethodConformance):
    method = "dhp"


class TestFactoredDHP(MethodConformance):
    method = "dhp"
    options: ClassVar[dict[str, Any]] = {"backend": "factored", "embedding": 2}


class TestMetaPruning(MethodConformance):
    method = "metapruning"
    options: ClassVar[dict[str, Any]] = {"hidden": 2, "evaluations": 4, "population": 2, "recalibration_images": 16}


SUITES = [
    value
    for value in list(globals().values())
    if isinstance(value, type) and issubclass(value, MethodConformance) and value is not MethodConformance
]


def test_every_method_is_tested_here() -> None:
    assert {suite.method for suite in SUITES} == set(methods.names())


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("name", ["registered", "tied"])
def test_a_tensor_with_two_names_has_one_value_in_two_places(name: str, suite: type[MethodConformance]) -> None:
    """So the answer loads into the network that was searched, and its state can be saved as safetensors."""
    problem = tiny_problem(name, 0.7)
    answer = suite().solve(problem)
    suite().check(problem, answer, problem.target_ms)
    if answer.state is not None:
        assert load(save(dict(answer.state))).keys() == problem.model.state_dict().keys()
        for first, others in problem.graph.aliases.items():
            assert all(torch.equal(answer.state[first], answer.state[other]) for other in others)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("uniform", {"channels": "taylr"}, "channels cannot be 'taylr'.* Did you mean 'taylor'"),
        ("magnitude", {"score": "l3"}, "score cannot be 'l3'"),
        ("greedy", {"floor": 1.0}, r"floor must be a share of at least 0 and less than 1, not 1.0"),
        ("greedy", {"stages": 0}, "stages must be 1 or more, not 0"),
        ("knapsack", {"score": "fisher"}, "score cannot be 'fisher'"),
        ("knapsack", {"bins": 99}, "bins must be 100 or more, not 99"),
        ("knapsack", {"floor": -0.1}, r"floor must be a share of at least 0 and less than 1, not -0.1"),
        ("gdp", {"task_gradient": "tangnt"}, "task_gradient cannot be 'tangnt'. Did you mean 'tangent'"),
        ("gdp", {"eps": 0.0}, "eps must be positive, not 0.0"),
        ("gdp", {"boost": -1.0}, "boost must be 0 or more, not -1.0"),
        ("gdp", {"saliency_decay": 2.0}, r"saliency_decay must be a share of at least 0 and less than 1, not 2.0"),
        ("gdp", {"hold": 0.95}, r"warmup=0.05, hold=0.95 and anneal=0.9 must rise within 0..1"),
        ("wgates", {"multiplier": "duel"}, "multiplier cannot be 'duel'. Did you mean 'dual'"),
        ("wgates", {"bias_travel": 0.0}, "bias_travel must be positive, not 0.0"),
        ("wgates", {"ramp": 1.5}, r"ramp must be a share between 0 and 1, not 1.5"),
    ],
)
def test_a_bad_option_is_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        methods.load(name)(**options)


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(UsageError, match=r"unknown method 'wgate'. Did you mean 'wgates'"):
        methods.load("wgate")


@pytest.mark.parametrize("name", ["wgates", "dhp", "gdp"])
def test_what_papers_call_flops_are_macs(name: str) -> None:
    kind = methods.load(name)
    chosen = config.from_mapping(kind, {"efficiency": "flops"}, where=name)
    problem = tiny_problem()
    space = problem.space
    efficiency = Efficiency(space, problem.graph, problem.latency, getattr(chosen, "efficiency"))  # noqa: B009
    rows = np.array([space.smallest().values_tuple(), space.dense().values_tuple()])
    expected = [problem.graph.macs(space.smallest()), problem.graph.macs(space.dense())]
    assert efficiency.predict_batch(rows).tolist() == expected


BELOW_1 = {
    "dhp": ("latent_momentum", "saliency_decay"),
    "gdp": ("saliency_decay",),
    "wgates": ("gate_momentum", "saliency_decay", "multiplier_decay", "settle"),
    "s2hpruner": ("momentum", "multiplier_decay"),
    "widths": ("momentum", "multiplier_decay", "settle"),
}
ABOVE_0 = {
    "dhp": ("threshold", "saliency_images", "floor"),
    **dict.fromkeys(("greedy", "knapsack", "metapruning", "random", "s2hpruner", "uniform"), ("saliency_images",)),
    **dict.fromkeys(("wgates", "widths"), ("saliency_images",)),
}


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *((name, option, 1.0) for name, options in BELOW_1.items() for option in options),
        *((name, option, 0) for name, options in ABOVE_0.items() for option in options),
    ],
)
def test_the_end_of_a_range_that_makes_no_sense_is_refused(name: str, option: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"^{option} must be .* not {value}"):
        methods.load(name)(**{option: value})


@pytest.mark.parametrize("name", ["uniform", "greedy", "random", "knapsack"])
def test_a_saliency_passes_at_most_half_of_the_images_that_a_run_may_see(name: str) -> None:
    problem = replace(tiny_problem(), image_budget=10)
    assert list(methods.load(name)().search(problem))[-1].image_passes <= 5
