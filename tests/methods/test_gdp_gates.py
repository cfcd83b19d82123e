"""Invariants 1, 7, 10 and 11 of GDP: the smoothed-L0 gate, its start and its scale; 2 is in test_proximal.py."""

from __future__ import annotations

import math

import pytest
import torch

from hwprune.methods._gdp_gates import (
    START,
    STEEPEST,
    GateVectors,
    smoothed_l0,
)
from hwprune.methods._gdp_search import PolarisingSearch
from hwprune.methods.gdp import GDP
from hwprune.testing.methods import tiny_problem


def test_1_the_gate_and_its_slope_are_the_closed_forms() -> None:
    for eps in (1e-1, 1e-4, 1e-8):
        theta = torch.linspace(-2, 2, 401, dtype=torch.float64, requires_grad=True)
        gate = smoothed_l0(theta, eps)
        (slope,) = torch.autograd.grad(gate.sum(), theta)
        exact = theta.detach()
        torch.testing.assert_close(gate.detach(), exact**2 / (exact**2 + eps))
        torch.testing.assert_close(slope, 2 * eps * exact / (exact**2 + eps) ** 2)
        steepest = math.sqrt(eps / 3)
        at = torch.tensor([0.0, steepest, math.sqrt(eps)], dtype=torch.float64, requires_grad=True)
        values = smoothed_l0(at, eps)
        torch.testing.assert_close(values, torch.tensor([0.0, 0.25, 0.5], dtype=torch.float64))
        (slopes,) = torch.autograd.grad(values.sum(), at)
        assert float(slopes[0]) == 0.0
        assert float(slopes[1]) == pytest.approx(STEEPEST / math.sqrt(eps))
    assert pytest.approx(0.6495, abs=1e-4) == STEEPEST


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_1_at_zero_the_slope_is_zero_and_half_precision_does_not_underflow(dtype: torch.dtype) -> None:
    theta = torch.tensor([0.0, 1e-4, 1.0], dtype=dtype, requires_grad=True)
    gate = smoothed_l0(theta, 1e-8)
    (slope,) = torch.autograd.grad(gate.sum(), theta)
    assert gate.dtype == torch.float32
    assert float(slope[0]) == 0.0
    assert bool(torch.isfinite(slope).all())
    assert float(gate[1].detach()) == pytest.approx(0.5, abs=0.01)


def test_7_the_largest_slope_of_a_gate_is_the_one_that_rates_are_set_by() -> None:
    for eps in (0.1, 1e-3, 1e-6):
        gates = GateVectors(tiny_problem("chain").space, torch.zeros(1), eps)
        theta = torch.linspace(0, START, 200_001, dtype=torch.float64, requires_grad=True)
        gate = theta**2 / (theta**2 + eps) * (START**2 + eps) / START**2
        (slope,) = torch.autograd.grad(gate.sum(), theta)
        assert gates.slope_scale() == pytest.approx(float(slope.max()), rel=1e-3)


def test_10_an_evaluation_changes_neither_eps_nor_theta() -> None:
    search = PolarisingSearch(tiny_problem(), GDP())
    before = {name: value.clone() for name, value in search.gates.state_dict().items()}
    for _ in range(3):
        search.gates.eval()()
        search.gates.train()()
    assert all(torch.equal(value, before[name]) for name, value in search.gates.state_dict().items())


def test_11_scaling_theta_and_eps_together_changes_nothing() -> None:
    theta = torch.linspace(0, 1, 11, dtype=torch.float64)
    for factor in (0.1, 7.0):
        torch.testing.assert_close(smoothed_l0(factor * theta, factor**2 * 0.1), smoothed_l0(theta, 0.1))


def test_11_theta_starts_at_one_and_the_network_is_unchanged_whatever_eps_is() -> None:
    problem = tiny_problem()
    for eps in (0.5, 0.1, 1e-3):
        gates = GateVectors(problem.space, next(problem.model.parameters()), eps)
        assert all(bool((theta.detach() == START).all()) for theta in gates.theta)
        for gate in gates():
            torch.testing.assert_close(gate.detach(), torch.ones_like(gate), rtol=1e-6, atol=1e-6)
