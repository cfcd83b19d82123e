"""Secants: equal to autograd where a model is linear, right where a staircase has no slope (invariant 7)."""

from __future__ import annotations

import numpy as np
import torch

from hwprune.latency.features import Array, IntArray
from hwprune.latency.secant import SecantLatency, neighbour, secant_latency
from hwprune.testing.staircase import staircase_layers_ms, staircase_space

SPACE = staircase_space()
SLOPES = np.array([0.5, 0.1, 0.25, 0.0, 2.0])


class Line:
    def predict_batch(self, values: IntArray) -> Array:
        return np.asarray(3.0 + values @ SLOPES)


class Staircase:
    def predict_batch(self, values: IntArray) -> Array:
        return np.asarray(staircase_layers_ms(values).sum(axis=1))


class Sawtooth:
    """Wider is faster in the first group."""

    def predict_batch(self, values: IntArray) -> Array:
        return np.asarray(100.0 - values[:, 0] + values[:, 1])


def test_equals_autograd_on_a_linear_model() -> None:
    for place in (0, 1, -1):
        widths = torch.tensor([float(allowed[place]) for allowed in SPACE.widths], dtype=torch.float64)
        widths.requires_grad_(True)
        latency = secant_latency(Line(), SPACE, widths)
        (2 * latency).backward()
        assert widths.grad is not None
        np.testing.assert_allclose(widths.grad.numpy(), 2 * SLOPES, atol=1e-6)
        assert abs(float(latency.detach()) - (3.0 + float(widths.detach().numpy() @ SLOPES))) < 1e-6


def test_positive_on_a_staircase_whose_own_slope_is_zero() -> None:
    fine = staircase_space(1)
    dense = np.array([SPACE.dense().values_tuple()])
    for group in range(5):
        narrower = dense - (np.arange(5) == group)
        assert Staircase().predict_batch(narrower)[0] == Staircase().predict_batch(dense)[0]
    fine.check(fine.make(list(dense[0] - 1)))
    widths = torch.tensor(SPACE.dense().values_tuple(), dtype=torch.float64, requires_grad=True)
    secant_latency(Staircase(), SPACE, widths).backward()
    assert widths.grad is not None
    assert bool((widths.grad > 0).all())


def test_slope_is_the_difference_over_both_neighbours() -> None:
    widths = np.array([16, 48, 32, 96, 128])
    latency, slopes = SecantLatency(Staircase(), SPACE).secants(widths)
    predict = Staircase().predict_batch
    assert latency == predict(widths[None])[0]
    up, down = widths + 16 * (np.arange(5) == 1), widths - 16 * (np.arange(5) == 1)
    np.testing.assert_allclose(slopes[1], (predict(up[None]) - predict(down[None]))[0] / 32)
    first = widths + 16 * (np.arange(5) == 0)  # at the lower end: one-sided
    np.testing.assert_allclose(slopes[0], (predict(first[None])[0] - latency) / 16)


def test_real_values_are_snapped_and_pass_their_gradient() -> None:
    widths = torch.tensor([17.0, 49.9, 30.0, 100.0, 250.0], requires_grad=True)
    latency = secant_latency(Staircase(), SPACE, widths)
    hard = np.array([[16, 48, 32, 96, 256]])
    assert abs(float(latency.detach()) - Staircase().predict_batch(hard)[0]) < 1e-6
    latency.backward()
    assert widths.grad is not None
    assert bool((widths.grad > 0).all())


def test_negative_slopes_count_as_none() -> None:
    latency = SecantLatency(Sawtooth(), SPACE)
    widths = torch.tensor(SPACE.smallest().values_tuple(), dtype=torch.float64, requires_grad=True)
    latency(widths).backward()
    assert widths.grad is not None
    assert widths.grad.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]


def test_a_group_with_one_width_has_no_slope() -> None:
    space = staircase_space(16)
    narrow = type(space)(space.groups, ((32,), *space.widths[1:]))
    widths = torch.tensor(narrow.dense().values_tuple(), dtype=torch.float64, requires_grad=True)
    secant_latency(Line(), narrow, widths).backward()
    assert widths.grad is not None
    assert widths.grad[0] == 0


class KnownStaircase(Staircase):
    step = 16


def test_on_a_grid_finer_than_the_step_the_neighbours_are_those_that_cost_something_else() -> None:
    fine = staircase_space(4)
    widths = np.array([16, 52, 64, 96, 256])
    assert neighbour(fine, widths, 16, -1).tolist() == [4, 48, 48, 80, 240]
    assert neighbour(fine, widths, 16, +1).tolist() == [20, 68, 64, 100, 256]
    assert neighbour(fine, widths, 4, -1).tolist() == neighbour(fine, widths, 1, -1).tolist() == [12, 48, 60, 92, 252]
    _, slopes = SecantLatency(KnownStaircase(), fine).secants(widths)
    assert bool((slopes > 0).all())
    assert not bool((SecantLatency(Staircase(), fine).secants(widths)[1] > 0).all())
