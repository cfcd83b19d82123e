"""The weight of the latency term, from the violation of the budget: nothing to tune by hand for each budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass
class DualAscent:
    """`value <- max(0, value + rate * violation)` once in `period` steps; violation is cost / budget - 1.

    The multiplier is learned by gradient ascent, as in LightNAS (Luo et al. 2022).
    """

    rate: float
    period: int
    value: float = 0.0
    steps: int = 0

    def update(self, violation: float, task: Tensor, cost: Tensor) -> None:
        """One optimiser step is done. The gradients (`task`, `cost`) are not used."""
        self.steps += 1
        if self.steps % self.period == 0:
            self.value = max(0.0, self.value + self.rate * violation)

    def state(self) -> tuple[float, ...]:
        """What `load_state` needs to go on exactly."""
        return self.value, float(self.steps)

    def load_state(self, state: Sequence[float]) -> None:
        """Continue from `state()`."""
        self.value, self.steps = state[0], int(state[1])


@dataclass
class ClosedForm:
    """The multiplier at which the task and the cost pull equally hard along the cost's gradient, times a correction.

    `value = max(0, -<task, cost> / <cost, cost>) * max(0, 1 + boost * violation)`, both products averaged
    exponentially over steps with `decay`: the budget is approached at the rate of the violation, whatever the scale of
    the losses. Source: our own pilot on EfficientNet-Lite0, where it met a 30 % budget and dual ascent did not.
    """

    decay: float
    boost: float
    value: float = 0.0
    products: tuple[float, float] = (0.0, 0.0)

    def update(self, violation: float, task: Tensor, cost: Tensor) -> None:
        """`task` and `cost`: gradients of the two losses by the same scores, `(units of all groups,)`."""
        now = (float(task @ cost), float(cost @ cost))
        mixed = [self.decay * old + (1 - self.decay) * new for old, new in zip(self.products, now, strict=True)]
        self.products = (mixed[0], mixed[1])
        balance = -mixed[0] / mixed[1] if mixed[1] > 0 else 0.0
        self.value = max(0.0, balance) * max(0.0, 1 + self.boost * violation)

    def state(self) -> tuple[float, ...]:
        """What `load_state` needs to go on exactly."""
        return self.value, *self.products

    def load_state(self, state: Sequence[float]) -> None:
        """Continue from `state()`."""
        self.value, self.products = state[0], (state[1], state[2])


Multiplier = DualAscent | ClosedForm
