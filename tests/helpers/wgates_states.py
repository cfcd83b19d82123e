"""States of a W-Gates search, and what its loss says about them."""

from __future__ import annotations

from typing import Any

import torch
from gated_networks import batch, outputs_with
from torch import Tensor

from hwprune.methods import Problem
from hwprune.methods._gate_search import GateSearch
from hwprune.methods.wgates import WGates


def started(problem: Problem, **options: Any) -> GateSearch:
    """A search before its first step, every gate open; its units are never settled unless asked."""
    method = WGates(**{"start": "open", "settle": 0.0, **options})
    search = GateSearch(problem, method)
    method._start(problem, search)
    return search


def cost_of(search: GateSearch) -> tuple[Tensor, Tensor]:
    """The cost and the open counts now, on the graph of the scores."""
    counts = search._gate(1.0)[2]
    return search.efficiency(counts), counts


def task_loss(search: GateSearch) -> tuple[Tensor, list[Tensor]]:
    """The task's loss of the gated network in eval mode, without the search's own terms, and the scores."""
    scores, gates, _ = search._gate(1.0)
    images, targets = batch(search.problem)
    outputs = outputs_with(search.problem, search.model.eval(), gates, images)
    return search.problem.task.loss(outputs, targets), scores


def bias_gradient(search: GateSearch, weight: float, budget: float) -> Tensor:
    """The gradient of the search's own loss by the biases, `(G,)`, for a weight of the latency term and a budget."""
    search.model.eval()
    search.gates.zero_grad()
    search.target, search.multiplier.value = budget, weight
    search.loss(*batch(search.problem), progress=1.0).backward()
    assert search.gates.bias.grad is not None
    return search.gates.bias.grad.clone()


def cost_gradient(search: GateSearch, budget: float) -> Tensor:
    """What the latency term of the search's own loss adds to the gradient by the biases, `(G,)`, at a budget."""
    return bias_gradient(search, 3.0, budget) - bias_gradient(search, 0.0, budget)


def task_gradients_by_score(search: GateSearch) -> list[Tensor]:
    """Gradient of the task's loss by every score; 0 for a unit whose activation is 0 on the whole batch."""
    loss, scores = task_loss(search)
    return list(torch.autograd.grad(loss, scores))
