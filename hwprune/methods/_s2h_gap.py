"""The gap between the soft and the hard network, and which of its gradients go where.

Soft and hard network share weights. Decoupled, the gap pulls the weights only through the hard network and the widths
only through the soft one: the hard network's errors never reach the soft network's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hwprune.training.tasks import Task

Routing = Literal["decoupled", "to_weights", "to_widths", "coupled"]


@dataclass(frozen=True)
class Gap:
    """`weight * distance(soft, hard)` at a temperature, for classification KL(soft || hard) times its square.

    `decoupled`: both of the next. `to_weights`: the hard network learns from the soft one, which is held fixed.
    `to_widths`: the soft network's masks move towards the hard one, its weights do not. `coupled`: nothing is held
    fixed, the plain mutual distillation that the method argues against.
    """

    task: Task
    weight: float
    temperature: float
    routing: Routing

    @property
    def moves_weights(self) -> bool:
        """Whether the hard network needs a backward pass."""
        return self.weight > 0 and self.routing != "to_widths"

    @property
    def moves_widths(self) -> bool:
        """Whether the soft network needs a second backward pass."""
        return self.weight > 0 and self.routing in ("decoupled", "to_widths")

    def for_weights(self, soft: Tensor, hard: Tensor) -> Tensor:
        """The gap as the hard network's loss: the soft outputs are a fixed target."""
        return self.weight * self.task.distance(hard, soft.detach(), self.temperature).mean()

    def for_widths(self, soft: Tensor, hard: Tensor) -> Tensor:
        """The same gap as a function of the soft outputs, the hard ones fixed."""
        return self.weight * self.task.distance(hard.detach(), soft, self.temperature).mean()

    def loss(self, soft: Tensor, hard: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """What to add to the soft network's loss, so that one backward pass routes all gradients.

        `masks`: the tensors, on the soft network's graph, that alone may carry the gap's gradient to the widths; none
        that needs a gradient: the widths do not learn now.
        """
        if self.weight == 0:
            return soft.new_zeros(())
        if self.routing == "coupled":
            return self.weight * self.task.distance(hard, soft, self.temperature).mean()
        total = self.for_weights(soft, hard) if self.moves_weights else soft.new_zeros(())
        learning = [mask for mask in masks if mask.requires_grad]
        if self.moves_widths and learning:
            gradients = torch.autograd.grad(self.for_widths(soft, hard), learning, retain_graph=True, allow_unused=True)
            # Linear in the masks, so their gradient is exactly this one; its value is no part of the loss.
            pulls = [(m * g).sum() for m, g in zip(learning, gradients, strict=True) if g is not None]
            pull = torch.stack(pulls).sum()
            total = total + pull - pull.detach()
        return total
