"""The multipliers against their formulas and in a loop where the answer is known."""

from __future__ import annotations

import pytest
import torch

from hwprune.methods._multiplier import ClosedForm, DualAscent


def test_dual_ascent_moves_once_a_period_and_never_below_zero() -> None:
    dual = DualAscent(rate=2.0, period=3)
    nothing = torch.zeros(1)
    values = []
    for violation in (0.5, 0.5, 0.5, -1.0, -1.0, -1.0):
        dual.update(violation, nothing, nothing)
        values.append(dual.value)
    assert values == [0.0, 0.0, 1.0, 1.0, 1.0, 0.0]


def test_closed_form_balances_task_and_cost() -> None:
    closed = ClosedForm(decay=0.0, boost=15.0)
    task, cost = torch.tensor([-3.0, 1.0, -2.0]), torch.tensor([1.0, 0.5, 0.0])
    closed.update(0.0, task, cost)
    assert closed.value == pytest.approx(2.5 / 1.25)
    balanced = task + closed.value * cost
    assert float(balanced @ cost) == pytest.approx(0.0, abs=1e-6)
    closed.update(0.1, task, cost)
    assert closed.value == pytest.approx(2.5 * 2.0)
    closed.update(-0.5, task, cost)
    assert closed.value == 0.0


def test_closed_form_averages_products_over_steps() -> None:
    closed = ClosedForm(decay=0.8, boost=0.0)
    one = torch.tensor([1.0])
    closed.update(0.0, -one, one)
    closed.update(0.0, -3 * one, one)
    assert closed.value == pytest.approx((0.8 * 0.2 * 1 + 0.2 * 3) / (0.8 * 0.2 + 0.2))


def test_closed_form_without_a_cost_gradient_is_zero() -> None:
    closed = ClosedForm(decay=0.8, boost=15.0)
    closed.update(1.0, torch.ones(3), torch.zeros(3))
    assert closed.value == 0.0


@pytest.mark.parametrize("multiplier", [DualAscent(0.5, 1), ClosedForm(0.8, 15.0)])
def test_gradient_descent_under_either_multiplier_ends_at_the_budget(multiplier: DualAscent | ClosedForm) -> None:
    """Minimise (x - 3)^2 where the cost is x and the budget 1."""
    x = torch.tensor([2.9])
    for _ in range(400):
        task, cost = 2 * (x - 3), torch.ones(1)
        multiplier.update(float(x) / 1.0 - 1, task, cost)
        x = x - 0.02 * (task + multiplier.value * cost)
    assert float(x) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("first", "second"), [(DualAscent(2.0, 2), DualAscent(2.0, 2)), (ClosedForm(0.8, 1.0), ClosedForm(0.8, 1.0))]
)
def test_state_continues_exactly(first: DualAscent | ClosedForm, second: DualAscent | ClosedForm) -> None:
    task, cost = torch.tensor([-1.0, 0.3]), torch.tensor([1.0, 2.0])
    for violation in (0.4, 0.3, 0.1):
        first.update(violation, task, cost)
    second.load_state(first.state())
    first.update(0.2, cost, task)
    second.update(0.2, cost, task)
    assert first.state() == second.state()
