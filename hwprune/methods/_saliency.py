"""How much each unit matters in the dense network: Taylor (by gate gradients), L1, L2, BN scale.

Scores are additive over units and NOT normalised per group: a group whose units all matter little may lose most of
them, which is where the gain over a uniform ratio comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from hwprune.core.widths import SearchSpace
from hwprune.graph import ChannelGraph, gate_parameters
from hwprune.graph.stateless import called_with
from hwprune.methods._base import Answer, Problem

Norm = Literal["l1", "l2"]
Score = Literal["taylor", "l1", "l2", "bn"]


@dataclass(frozen=True)
class Saliency:
    """Scores, group name -> `(units,)`, and the images that were passed to get them."""

    scores: Mapping[str, np.ndarray]
    image_passes: int


def open_gates(space: SearchSpace, like: Tensor) -> dict[str, Tensor]:
    """A gate of 1 for every unit: group name -> `(units,)`, of the dtype and device of `like`."""
    return {group.name: like.new_ones(group.units) for group in space.groups}


def taylor(
    problem: Problem, *, images: int, batch_size: int = 32, keep: Mapping[str, tuple[int, ...]] | None = None
) -> Saliency:
    """Estimated rise of the loss when a unit of `problem.model` goes: group name -> `(units,)`.

    Half the diagonal Fisher information of a gate at the unit's consumers: `batch_size / 2` times the mean over
    training batches of the squared gradient of the batch's loss. (The gradient itself is no measure: its mean is 0 in
    a trained network, because the gate only rescales trained weights.) `keep` closes all other units first; a closed
    unit scores 0. The model, in eval mode, is left as it was. `images` are passed, or `allowed_images` if those are
    fewer. Source: Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", with gates in place of
    weights.
    """
    images = allowed_images(problem, images)
    if problem.image_budget is not None:
        batch_size = max(1, min(batch_size, images))
    parameters = {name: value.detach() for name, value in problem.model.named_parameters()}
    like = next(iter(parameters.values()))
    leaves = {name: gate.requires_grad_() for name, gate in _gates(problem.space, like, keep).items()}
    squares = {name: torch.zeros_like(gate, dtype=torch.float64) for name, gate in leaves.items()}
    generator = torch.Generator().manual_seed(problem.seed)
    batches, seen = 0, 0
    for inputs, targets in problem.data.batches("train", batch_size, generator=generator, augment=False):
        changed = gate_parameters(parameters, problem.graph, leaves)
        outputs = called_with(problem.model, {**parameters, **changed}, inputs.to(like.device))
        loss = problem.task.loss(outputs, targets.to(like.device))
        for name, gradient in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
            squares[name] += gradient.double().square()
        batches, seen = batches + 1, seen + len(inputs)
        if seen >= images:
            break
    scale = 0.5 * seen / max(batches, 1) ** 2
    scores = {name: (squares[name] * scale * leaves[name].detach()).cpu().numpy() for name in leaves}
    return Saliency(scores, seen)


def saliency_by(problem: Problem, score: Score, *, images: int = 0) -> Saliency:
    """The scores of that name; the Taylor ones from `images` training images."""
    if score == "taylor":
        return taylor(problem, images=images)
    if score == "bn":
        return Saliency(bn_scale(problem.model, problem.graph, problem.space), 0)
    return Saliency(weight_norm(problem.model, problem.graph, problem.space, score), 0)


def allowed_images(problem: Problem, images: int) -> int:
    """How many images an estimate may pass: at most half of what the run may see, so that the rest is trained with."""
    return images if problem.image_budget is None else min(images, problem.image_budget // 2)


def _gates(space: SearchSpace, like: Tensor, keep: Mapping[str, tuple[int, ...]] | None) -> dict[str, Tensor]:
    gates = open_gates(space, like)
    for group, kept in (keep or {}).items():
        gates[group] = torch.zeros_like(gates[group]).index_fill(0, torch.tensor(kept, device=like.device), 1.0)
    return gates


def dense_answer(problem: Problem, saliency: Saliency) -> Answer:
    """The unpruned network as an answer that carries scores: where a control starts from."""
    keep = {group.name: tuple(range(group.units)) for group in problem.space.groups}
    return Answer(problem.space.dense(), keep, problem.dense_ms, saliency.scores, image_passes=saliency.image_passes)


def weight_norm(model: nn.Module, graph: ChannelGraph, space: SearchSpace, norm: Norm) -> dict[str, np.ndarray]:
    """Mean absolute (l1) or root mean square (l2) weight of what produces each unit: group name -> `(units,)`.

    Means, not sums, so that filters with more inputs do not win a global ranking; biases and norms are left out.
    A group without producing weights scores 1. Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets".
    """
    scores: dict[str, np.ndarray] = {}
    state = dict(model.named_parameters())
    for group in space.groups:
        total, count = np.zeros(group.units), np.zeros(group.units)
        for piece in graph.producer_slices(group.name):
            weight = state[piece.parameter].detach().double() if piece.parameter in state else None
            if weight is None or weight.ndim < 2:
                continue
            rows = weight.movedim(piece.dim, 0).flatten(1).cpu().numpy()[piece.positions]
            powers = np.abs(rows) if norm == "l1" else rows**2
            np.add.at(total, piece.units, powers.sum(axis=1))
            np.add.at(count, piece.units, rows.shape[1])
        mean = np.divide(total, count, out=np.ones(group.units), where=count > 0)
        scores[group.name] = mean if norm == "l1" else np.sqrt(mean)
    return scores


def bn_scale(model: nn.Module, graph: ChannelGraph, space: SearchSpace) -> dict[str, np.ndarray]:
    """Mean absolute batch-norm weight of each unit; mean absolute weight in groups without batch norm.

    Source: Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming".
    """
    scores = weight_norm(model, graph, space, "l1")
    for group in space.groups:
        total, count = np.zeros(group.units), np.zeros(group.units)
        for piece in graph.producer_slices(group.name):
            module, _, leaf = piece.parameter.rpartition(".")
            owner = model.get_submodule(module)
            if leaf == "weight" and isinstance(owner, nn.modules.batchnorm._BatchNorm):
                scale = owner.weight.detach().abs().double().cpu().numpy()[piece.positions]
                np.add.at(total, piece.units, scale)
                np.add.at(count, piece.units, 1.0)
        if (count > 0).all():
            scores[group.name] = total / count
    return scores
