"""Importance scores against definitions computed the slow way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hwprune.graph import mask, trace
from hwprune.methods._saliency import bn_scale, taylor, weight_norm
from hwprune.testing.methods import tiny_problem


def test_taylor_is_half_the_fisher_information_of_the_gates() -> None:
    """The slow way: scale the weights that read one unit by 1 + h and 1 - h, batch by batch."""
    problem = tiny_problem("chain")
    scores = taylor(problem, images=48, batch_size=16).scores
    group = problem.space.names[0]
    state = {name: value.double() for name, value in problem.model.state_dict().items()}
    generator = torch.Generator().manual_seed(problem.seed)
    batches = list(problem.data.batches("train", 16, generator=generator))
    expected = np.zeros(8)
    for unit in range(8):
        squares = []
        for images, targets in batches:
            losses = []
            for factor in (1 + 1e-6, 1 - 1e-6):
                changed = {name: value.clone() for name, value in state.items()}
                for piece in problem.graph.consumer_slices(group):
                    positions = torch.from_numpy(piece.positions[piece.units == unit])
                    rows = changed[piece.parameter].index_select(piece.dim, positions) * factor
                    changed[piece.parameter] = changed[piece.parameter].index_copy(piece.dim, positions, rows)
                outputs = torch.func.functional_call(problem.model, changed, (images.double(),))
                losses.append(float(problem.task.loss(outputs, targets).detach()))
            squares.append(((losses[0] - losses[1]) / 2e-6) ** 2)
        expected[unit] = 0.5 * 16 * np.mean(squares)
    np.testing.assert_allclose(scores[group], expected, rtol=1e-3)


def test_taylor_of_a_closed_unit_is_zero_and_of_an_unread_one_too() -> None:
    problem = tiny_problem("chain")
    group = problem.space.names[0]
    closed = taylor(problem, images=16, keep={group: (0, 2, 5)})
    assert closed.image_passes == 32
    assert set(np.flatnonzero(closed.scores[group])) <= {0, 2, 5}
    unread = mask(problem.model, problem.graph, {group: [1, 3]})
    scores = taylor(replace(problem, model=unread.eval()), images=16).scores[group]
    assert set(np.flatnonzero(scores)) <= {1, 3}


def test_taylor_stops_at_the_images_asked_for() -> None:
    problem = tiny_problem("chain")
    assert taylor(problem, images=20, batch_size=8).image_passes == 24
    assert taylor(problem, images=1000, batch_size=8).image_passes == 48


class Twin(nn.Module):
    """Two convolutions that share their output channels through an addition, one of them with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1, bias=False)
        self.right = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.relu(self.left(x) + self.norm(self.right(x))))
        return out


def test_weight_norms_average_over_all_producers() -> None:
    model = Twin().eval()
    graph = trace(model, torch.randn(1, 3, 4, 4))
    (group,) = graph.removable
    space = graph.space()
    left, right = (layer.weight.detach().double().flatten(1).numpy() for layer in (model.left, model.right))
    together = np.concatenate([left, right], axis=1)
    np.testing.assert_allclose(weight_norm(model, graph, space, "l1")[group.name], np.abs(together).mean(1))
    np.testing.assert_allclose(weight_norm(model, graph, space, "l2")[group.name], np.sqrt((together**2).mean(1)))


def test_bn_scale_reads_the_norm_and_falls_back_to_weights() -> None:
    model = Twin().eval()
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([0.5, -2.0, 0.1, 1.0]))
    graph = trace(model, torch.randn(1, 3, 4, 4))
    (group,) = graph.removable
    assert bn_scale(model, graph, graph.space())[group.name] == pytest.approx([0.5, 2.0, 0.1, 1.0])
    problem = tiny_problem("subpixel")
    bare = bn_scale(problem.model, problem.graph, problem.space)
    norms = weight_norm(problem.model, problem.graph, problem.space, "l1")
    for name in problem.space.names:
        np.testing.assert_array_equal(bare[name], norms[name])
