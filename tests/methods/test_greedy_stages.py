"""`greedy` in stages: what one stage removes, the next ones do not bring back."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from hwprune.methods import Answer
from hwprune.methods.greedy import Greedy, _updated
from hwprune.testing.methods import tiny_problem


@contextlib.contextmanager
def torch_flushes_denormals() -> Iterator[None]:
    """As after a session of ONNX Runtime on this thread."""
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("family", ["chain", "resnet_option_b"])
@pytest.mark.parametrize("exchange", [True, False])
def test_the_units_of_a_stage_lie_within_those_of_the_stage_before(family: str, exchange: bool) -> None:
    for budget, tile in itertools.product((0.7, 0.5), (1, 4)):
        problem = tiny_problem(family, budget, tile=tile)
        answers = list(Greedy(stages=4, exchange=exchange).search(problem))
        assert len(answers) == 4
        assert answers[-1].predicted_ms <= problem.target_ms
        for wider, narrower in itertools.pairwise(answers):
            assert all(set(kept) <= set(wider.keep[group]) for group, kept in narrower.keep.items())


def test_a_removed_unit_does_not_take_the_place_of_an_equal_one() -> None:
    """Unit 0 scored more before than unit 1 does now that it is gone."""
    space = tiny_problem("chain").space
    old, again = np.array([5.0, 9.0, 9.0, 5.0]), np.array([0.0, 1.0, 2.0, 0.0])
    answer = Answer(space.dense(), {"g": (1, 2)}, 1.0, {"g": old})
    scores = _updated(answer, {"g": again})["g"]
    assert np.argsort(-scores, kind="stable")[:2].tolist() == [2, 1]
    assert np.isfinite(scores).all()
    nothing = _updated(answer, {"g": np.zeros(4)})["g"]
    assert sorted(np.argsort(-nothing, kind="stable")[:2].tolist()) == [1, 2]
    with torch_flushes_denormals():
        nothing = _updated(answer, {"g": np.zeros(4)})["g"]
        assert sorted(np.argsort(-nothing, kind="stable")[:2].tolist()) == [1, 2]


def test_a_looser_target_brings_units_back() -> None:
    """What the measurement of the last stage asks for is not a stage."""
    problem = tiny_problem("chain", 0.5, tile=1)
    method = Greedy(stages=3)
    answer = list(method.search(problem))[-1]
    wider = method.refit(problem, answer, 1.3 * problem.target_ms)
    assert sum(wider.widths.values()) > sum(answer.widths.values())
