"""Soft thresholding, by which latents of DHP (invariant 5) and gates of GDP (invariant 2) become exactly 0."""

from __future__ import annotations

import pytest
import torch

from hwprune.methods._proximal import soft_threshold


def test_it_minimises_what_it_should() -> None:
    grid = torch.linspace(-3, 3, 60001, dtype=torch.float64)
    for value in (-2.0, -0.7, -0.1, 0.0, 0.3, 1.5):
        for amount in (0.0, 0.2, 0.7, 4.0):
            objective = 0.5 * (grid - value) ** 2 + amount * grid.abs()
            found = float(soft_threshold(torch.tensor(value, dtype=torch.float64), amount))
            assert found == pytest.approx(float(grid[objective.argmin()]), abs=1e-4)
            assert found * value >= 0
            assert found == 0.0 or abs(value) > amount
            assert found == value or amount > 0


def test_it_makes_exact_zeros_and_flips_no_sign() -> None:
    values = torch.tensor([-1.0, -0.3, -0.1, 0.0, 0.1, 0.25, 1.0])
    moved = soft_threshold(values, 0.25)
    torch.testing.assert_close(moved, torch.tensor([-0.75, -0.05, 0.0, 0.0, 0.0, 0.0, 0.75]))
    assert [float(value) == 0.0 for value in moved] == [False, False, True, True, True, True, False]
    assert bool((moved * values >= 0).all())
    assert float(soft_threshold(torch.tensor(0.4), 0.4)) == 0.0
    assert torch.equal(soft_threshold(torch.zeros(3), 0.25), torch.zeros(3))
    assert torch.equal(soft_threshold(values, 0.0), values)


def test_each_value_may_have_an_amount_of_its_own() -> None:
    values, amounts = torch.tensor([-2.0, 2.0, 0.5]), torch.tensor([0.5, 3.0, 0.0])
    assert soft_threshold(values, amounts).tolist() == [-1.5, 0.0, 0.5]
