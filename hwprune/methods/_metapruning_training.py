"""Training PruningNet: one random structure a step, for all structures alike; and the guard on its size."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hwprune.core.errors import MethodGaveUp
from hwprune.core.events import Note
from hwprune.core.units import format_bytes, format_count
from hwprune.core.widths import Widths
from hwprune.methods._base import Problem
from hwprune.methods._joint import distilled_loss
from hwprune.methods._metapruning_genes import GeneSpace
from hwprune.methods._metapruning_net import Encoding, PruningNet, parameter_count
from hwprune.training._trainee import AbstractTrainee, sgd

# Weights, gradients and momentum; weights and momentum again while a checkpoint is written. A step's own intermediate
# tensors, of the size of the largest generator, come and go within that.
_COPIES = 5
_MEMORY_SHARE = 0.5


class StructureTraining(AbstractTrainee):
    """PruningNet on the task, with a structure drawn for every step from the step's own random numbers.

    A share `near_budget` of the steps draws structures just within the budget, where the search will look; the others
    draw every width uniformly, as the paper does.
    """

    def __init__(
        self, problem: Problem, net: PruningNet, genes: GeneSpace, *, near_budget: float, distill_alpha: float
    ) -> None:
        self.problem, self.net, self.genes = problem, net, genes
        self.near_budget, self.distill_alpha = near_budget, distill_alpha
        self._optimizer = sgd(net, problem.plan)
        self._kept = 1.0

    def modules(self) -> Sequence[nn.Module]:
        """PruningNet."""
        return (self.net,)

    def optimizers(self) -> Sequence[Optimizer]:
        """SGD by the plan for generators and ordinary weights; biases and norms are not decayed."""
        return (self._optimizer,)

    def loss(self, images: Tensor, targets: Tensor, progress: float) -> Tensor:
        """Task loss of one random sub-network, mixed with the distance to the dense one."""
        widths = self.draw()
        dense = self.genes.space.dense()
        self._kept = float(np.mean([width / dense[name] for name, width in widths.items()]))
        outputs = self.net(images, widths).float()
        return distilled_loss(self.problem, outputs, images, targets, self.distill_alpha)

    def draw(self) -> Widths:
        """A structure; depends on the state of torch's global generator alone, which the loop sets for every step."""
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        near = self.genes.near_budget(rng, 1) if rng.random() < self.near_budget else []
        return self.genes.widths(near[0] if near else tuple(int(place) for place in self.genes.uniform(rng, 1)[0]))

    def after_step(self, progress: float) -> Mapping[str, float]:
        """The mean keep ratio of the structure."""
        return {"keep_ratio": self._kept}

    def state(self) -> dict[str, Tensor]:
        """PruningNet's state dict."""
        return dict(self.net.state_dict())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state()`."""
        self.net.load_state_dict(dict(state))


def check_size(problem: Problem, hidden: int, encoding: Encoding, memory_gb: float) -> None:
    """Say how large PruningNet will be, or raise `MethodGaveUp` before it is made when memory does not hold it."""
    weight = next(problem.model.parameters())
    limit = memory_gb * 2**30 if memory_gb > 0 else _MEMORY_SHARE * _memory_bytes(weight.device)

    def size(units: int) -> tuple[int, int]:
        count = parameter_count(problem.model, problem.graph, problem.space, units, encoding)
        return count, count * weight.element_size() * _COPIES

    count, needed = size(hidden)
    text = f"PruningNet has {format_count(count)} parameters (hidden={hidden}): {format_bytes(needed)} in training"
    if needed <= limit:
        problem.on_event(Note(text))
        return
    fitting = next((units for units in range(hidden, -1, -1) if size(units)[1] <= limit), None)
    hint = "the dense network alone is too large to be trained here"
    if fitting is not None:
        hint = f"--set hidden={fitting} fits, hidden=0 is plain weight sharing; or allow more with --set memory_gb"
    raise MethodGaveUp(f"{text}, and {format_bytes(limit)} are allowed", hint=hint)


def _memory_bytes(device: torch.device) -> float:
    """The memory of the device the model is on."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
