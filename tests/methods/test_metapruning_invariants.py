"""The invariants of MetaPruning that concern PruningNet.

Those of the search (1, 9 to 12) are in test_metapruning_sampler.py, 15 is in test_metapruning.py; of invariant 13 the
two networks whose genes the paper's authors give are counted here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwprune.core.widths import Widths
from hwprune.graph import ChannelGraph, cut, trace
from hwprune.methods import Problem
from hwprune.methods._metapruning_genes import GeneSpace
from hwprune.methods._metapruning_net import PruningNet
from hwprune.methods._metapruning_search import Judge
from hwprune.methods._metapruning_training import StructureTraining
from hwprune.methods._saliency import weight_norm
from hwprune.testing.methods import tiny_problem
from hwprune.testing.networks import FAMILIES
from hwprune.training._random import generator

every_family = pytest.mark.parametrize("name", FAMILIES)


def made(problem: Problem, *, hidden: int = 4, deviation: float = 0.02, warm: bool = True) -> PruningNet:
    """PruningNet in eval mode whose corrections are not zero, with units in L1 order."""
    scores = weight_norm(problem.model, problem.graph, problem.space, "l1")
    net = PruningNet(problem.model, problem.graph, problem.space, scores, hidden=hidden, warm=warm)
    random = generator(0, "corrections")
    for block in net.blocks:
        weight = block.second.weight
        assert isinstance(weight, nn.Parameter)
        with torch.no_grad():
            weight.copy_(deviation * torch.randn(weight.shape, generator=random))
    return net.eval()


def structures(problem: Problem, count: int) -> list[Widths]:
    rng = Random(5)
    return [problem.space.smallest(), problem.space.dense(), *(problem.space.sample(rng) for _ in range(count))]


def images_of(problem: Problem, count: int = 4) -> Tensor:
    return problem.data.train.images[:count]


@every_family
def test_2_full_genes_give_the_full_shapes_and_a_crop_is_a_prefix_of_each_group(name: str) -> None:
    problem = tiny_problem(name)
    net = made(problem)
    dense = {key: tuple(value.shape) for key, value in problem.model.named_parameters()}
    for widths in structures(problem, 3):
        full, crop = net.weights(widths), net.crop(widths)
        assert {key: tuple(value.shape) for key, value in full.items()} == dense
        for key, value in full.items():
            index = np.ix_(*(_prefix(problem, net, key, dim, size, widths) for dim, size in enumerate(value.shape)))
            part = value.detach().numpy()[index]
            if key in crop.factors:
                assert crop.select(key, value).shape == part.shape
            else:
                np.testing.assert_array_equal(crop.select(key, value).detach().numpy(), part)


def _prefix(problem: Problem, net: PruningNet, key: str, dim: int, size: int, widths: Widths) -> np.ndarray:
    """The indices of one dim that belong to no group, or to the first units of theirs: the union over segments."""
    stays = np.ones(size, dtype=bool)
    for group in problem.space.names:
        first = np.argsort(-net.scores[group], kind="stable")[: widths[group]]
        for role, piece in problem.graph.slices[group]:
            if role != "gate" and (piece.parameter, piece.dim) == (key, dim):
                stays[piece.positions] &= np.isin(piece.units, first)
    return np.flatnonzero(stays)


@every_family
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_3_the_generated_network_equals_the_plain_one_with_the_sliced_weights(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    problem = tiny_problem(name)
    problem = replace(problem, model=copy.deepcopy(problem.model).to(dtype))
    net = made(problem)
    images = images_of(problem).to(dtype)
    for widths in structures(problem, 2):
        plain = copy.deepcopy(problem.model)
        plain.load_state_dict(net.state(widths))
        with torch.no_grad():
            expected = cut(plain, problem.graph, net.crop(widths).keep)(images)
            assert float((net(images, widths) - expected).abs().max()) < tolerance * max(1, float(expected.abs().max()))


@pytest.mark.parametrize(("name", "filler"), [*((name, float("nan")) for name in FAMILIES), ("densenet", 0.0)])
def test_4_what_lies_outside_the_crop_does_not_matter(name: str, filler: float) -> None:
    problem = tiny_problem(name)
    net = made(problem)
    for widths in structures(problem, 2):
        spoilt = copy.deepcopy(net)
        with torch.no_grad():
            for key, value in spoilt.model.named_parameters():
                value[outside(net, key, value, widths)] = filler
            assert torch.equal(spoilt(images_of(problem), widths), net(images_of(problem), widths))


def outside(net: PruningNet, key: str, weight: Tensor, widths: Widths) -> Tensor:
    """What the crop leaves out of a weight: a mask of the weight's shape."""
    kept: list[Any] = [range(size) for size in weight.shape]
    for dim, indices in net.crop(widths).indices.get(key, ()):
        kept[dim] = indices.tolist()
    mask = torch.ones_like(weight, dtype=torch.bool)
    mask[np.ix_(*kept)] = False
    return mask


@every_family
def test_5_any_gene_runs_and_all_members_of_a_group_have_one_width(name: str) -> None:
    problem = tiny_problem(name, tile=1)
    net = made(problem).train()
    for widths in structures(problem, 6):
        net(images_of(problem, 8), widths)
        small = dict(net.crop(widths).small.named_parameters())
        for template in problem.graph.parameter_templates:
            assert tuple(count.at(dict(widths)) for count in template.shape) == tuple(small[template.name].shape)


@pytest.mark.parametrize("name", ["chain", "mobilenetv2", "densenet", "unet", "transformer"])
def test_6_weights_outside_the_crop_get_no_gradient(name: str) -> None:
    problem = tiny_problem(name)
    net = made(problem).train()
    widths = problem.space.smallest()
    net(images_of(problem, 8), widths).square().mean().backward()
    weights = dict(net.model.named_parameters())
    shrunk = 0
    for block, key in zip(net.blocks, net.encoded, strict=True):
        gone = outside(net, key, weights[key], widths)
        direct, generated = weights[key].grad, block.second.weight.grad
        assert direct is not None
        assert float(direct[~gone].abs().sum()) > 0
        assert float(direct[gone].abs().sum()) == 0
        assert float(generated[gone.flatten()].abs().sum()) == 0
        shrunk += bool(gone.any())
    assert shrunk


@every_family
def test_6_the_encoding_is_used(name: str) -> None:
    problem = tiny_problem(name)
    one, other = problem.space.smallest(), problem.space.dense()
    net = made(problem, hidden=32)  # with few, a generator can be born dead: all of its ReLUs closed
    for key in net.encoded:
        assert not torch.equal(net.weights(one)[key], net.weights(other)[key])
    for same in (made(problem, deviation=0.0), made(problem, hidden=0)):
        for key in same.encoded:
            assert torch.equal(same.weights(one)[key], same.weights(other)[key])
            assert torch.equal(same.weights(one)[key], dict(problem.model.named_parameters())[key])


def judged(problem: Problem) -> Judge:
    return Judge(problem, made(problem), "loss", recalibration_images=48)


@pytest.mark.parametrize("name", ["chain", "mobilenetv2", "densenet"])
def test_7_recalibration_gives_the_statistics_of_the_images(name: str) -> None:
    problem = tiny_problem(name)
    judge = judged(problem)
    images = problem.data.normalise(problem.data.train.images)
    small = judge.network(problem.space.smallest())
    with torch.no_grad():
        in_eval = small.eval()(images)
        for module in small.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
        in_train = small(images)
    scale = float(in_train.abs().max())
    assert float((in_eval - in_train).abs().max()) < 0.03 * scale


@pytest.mark.parametrize("name", ["chain", "mobilenetv2", "densenet"])
def test_7_what_was_evaluated_before_does_not_matter(name: str) -> None:
    problem = tiny_problem(name)
    judge = judged(problem)
    before = {key: value.clone() for key, value in judge.net.state_dict().items()}
    one, other = problem.space.smallest(), problem.space.dense()
    first = judge(one)
    assert judge(other) != first
    assert judge(one) == first
    assert judge(one) == first
    for key, value in judge.net.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(parameter.grad is None for parameter in judge.net.parameters())


def test_7_the_test_split_is_never_seen() -> None:
    problem = tiny_problem()
    poisoned = replace(problem.data.test, images=torch.full_like(problem.data.test.images, float("nan")))
    judge = judged(replace(problem, data=replace(problem.data, test=poisoned)))
    assert judge(problem.space.smallest()) == judged(problem)(problem.space.smallest())


def test_8_private_statistics_for_every_width_would_change_nothing_in_training() -> None:
    problem = tiny_problem("mobilenetv2")
    losses = []
    for scale in (1.0, 7.0):
        net = made(problem).train()
        for buffer in net.model.buffers():
            if buffer.is_floating_point():
                buffer.mul_(scale)
        before = {key: value.clone() for key, value in net.model.named_buffers()}
        losses.append(net(images_of(problem, 8), problem.space.smallest()).square().mean().item())
        assert all(torch.equal(value, before[key]) for key, value in net.model.named_buffers())
    assert losses[0] == losses[1]


@every_family
def test_14_the_searched_and_the_trained_network_are_one_architecture(name: str) -> None:
    problem = tiny_problem(name)
    net = made(problem)
    example = problem.graph.example
    for widths in structures(problem, 1):
        crop = net.crop(widths)
        searched = {key: tuple(crop.select(key, value).shape) for key, value in problem.model.named_parameters()}
        plain = cut(problem.model, problem.graph, crop.keep)
        assert searched == {key: tuple(value.shape) for key, value in plain.named_parameters()}
        traced = trace(plain, example, verify=False)
        wiring = [(op.name, op.kind) for op in traced.op_templates]
        assert wiring == [(op.name, op.kind) for op in problem.graph.op_templates]
        assert traced.ops({}) == problem.graph.ops(widths)


class _Bottleneck(nn.Module):
    """Expand, depthwise, project; a shortcut where stride and the base widths allow it."""

    def __init__(self, c_in: int, middle: int, c_out: int, stride: int) -> None:
        super().__init__()
        convs = [nn.Conv2d(c_in, middle, 1, bias=False), nn.Conv2d(middle, middle, 3, stride, 1, 1, middle, bias=False)]
        convs.append(nn.Conv2d(middle, c_out, 1, bias=False))
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList([nn.BatchNorm2d(conv.out_channels) for conv in convs])
        self.shortcut = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for place, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            out = norm(conv(out))
            out = torch.relu(out) if place < 2 else out
        return x + out if self.shortcut else out


class _MobileNetV2(nn.Module):
    """MobileNetV2 1.4x as the paper's code widens it: 44 | 22 | 33x2 | 44x3 | 88x4 | 132x3 | 224x3 | 448 | 1280."""

    outputs = (22, 33, 33, 44, 44, 44, 88, 88, 88, 88, 132, 132, 132, 224, 224, 224, 448)
    strides = (1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        inputs = (44, *self.outputs[:-1])
        middles = (44, *(6 * width for width in inputs[1:]))
        self.stem = nn.Sequential(nn.Conv2d(3, 44, 3, 2, 1, bias=False), nn.BatchNorm2d(44))
        self.blocks = nn.ModuleList(map(_Bottleneck, inputs, middles, self.outputs, self.strides))
        self.head = nn.Sequential(nn.Conv2d(448, 1280, 1, bias=False), nn.BatchNorm2d(1280))
        self.fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.fc(torch.relu(self.head(x)).mean((2, 3)))  # type: ignore[no-any-return]


def paper_width(base: int, index: int) -> int:
    """Scale `index` of the paper's 31, 0.10 to 1.00 in steps of 0.03, in exact integers."""
    return base * (10 + 3 * index) // 100


def mobilenetv2_at(overall: tuple[int, ...], middles: tuple[int, ...]) -> tuple[ChannelGraph, dict[str, int]]:
    """The graph, and the widths of two lists of the paper's scale indices: one gene a stage, one a bottleneck."""
    graph = trace(_MobileNetV2().eval(), torch.zeros(1, 3, 224, 224), verify=False)
    widths = {"stem.0": paper_width(44, overall[0])}
    inputs = (44, *_MobileNetV2.outputs[:-1])
    for place, (base, index) in enumerate(zip(_MobileNetV2.outputs, overall[1:], strict=True)):
        middle = inputs[place] * (6 if place else 1)
        widths[f"blocks.{place}.convs.0"] = paper_width(middle, middles[place])
        widths[f"blocks.{place}.convs.2"] = paper_width(base, index)
    free = {group.name: widths[group.name] for group in graph.removable if group.name != "head.0"}
    assert len(free) == 25
    return graph, free


def test_13_the_paper_s_mobilenetv2_costs_what_its_log_says() -> None:
    overall = (18, 23, 18, 18, 28, 28, 28, 27, 27, 27, 27, 2, 2, 2, 12, 12, 12, 15)
    graph, free = mobilenetv2_at(overall, (4, 12, 25, 23, 20, 14, 24, 8, 19, 26, 2, 10, 24, 16, 6, 26, 10))
    ops = graph.ops(free)
    norms = sum(op.out_channels * op.out_size[0] * op.out_size[1] for op in ops if op.kind == "norm")
    # The search's counter also counts a norm's outputs, the classifier's bias and the inputs of the pooling.
    total = graph.macs(free) + norms + 1000 + 1280 * 7 * 7
    assert round(total / 1e6, 2) == 207.98


def test_13_the_paper_s_mobilenetv2_of_105_million() -> None:
    overall = (14, 12, 11, 11, 8, 8, 8, 7, 7, 7, 7, 8, 8, 8, 14, 14, 14, 8)
    graph, free = mobilenetv2_at(overall, (6, 5, 2, 15, 7, 17, 14, 5, 11, 12, 12, 11, 6, 16, 14, 13, 14))
    assert round(graph.macs(free) / 1e6, 2) == 104.87


@pytest.mark.slow
def test_13_the_paper_s_resnet50_in_full_and_at_two_sizes() -> None:
    models = pytest.importorskip("torchvision.models")
    graph = trace(models.resnet50(weights=None).eval(), torch.zeros(1, 3, 224, 224), verify=False)
    assert round(graph.macs(graph.dense()) / 1e6) == 4089
    half = (19, 9, 15, 13, 10, 9, 10, 6, 9, 13, 11, 12, 7, 18, 7, 13, 12, 10, 19, 18)
    three_quarters = (23, 17, 16, 17, 16, 16, 18, 20, 18, 25, 11, 29, 22, 18, 13, 27, 17, 23, 23, 20)
    blocks = [(layer, block) for layer, count in enumerate((3, 4, 6, 3), start=1) for block in range(count)]
    for ids, golden in ((half, 1027.6), (three_quarters, 1989.9)):
        index = {"conv1": ids[0], "layer4": 30}  # the last stage's outputs stay whole
        index.update({f"layer{layer}": ids[layer] for layer in (1, 2, 3)})
        for (layer, block), middle in zip(blocks, ids[4:], strict=True):
            index.update({f"layer{layer}.{block}.conv1": middle, f"layer{layer}.{block}.conv2": middle})
        # Where a block ends, or its shortcut does, the width is its stage's.
        widths = {
            group.name: paper_width(group.units, index.get(group.name, index.get(group.name.partition(".")[0], -1)))
            for group in graph.removable
        }
        assert len(set(index) - set(widths)) == 4  # the stages, which are named by a layer of theirs
        assert round(graph.macs(widths) / 1e6, 1) == golden


def test_one_structure_a_step_drawn_from_the_step_s_own_numbers() -> None:
    problem = tiny_problem(budget=0.6)
    genes = GeneSpace.within(problem.space, problem.latency, problem.target_ms, 0.95)
    drawn: list[Sequence[Widths]] = []
    for near in (0.0, 1.0):
        training = StructureTraining(problem, made(problem), genes, near_budget=near, distill_alpha=0.7)
        torch.manual_seed(4)
        drawn.append([training.draw() for _ in range(60)])
        torch.manual_seed(4)
        assert drawn[-1] == [training.draw() for _ in range(60)]
    costs = [genes.cost_ms(np.array([genes.gene(widths) for widths in some])) for some in drawn]
    assert (costs[1] <= problem.target_ms).all()
    assert costs[1].mean() > 0.9 * problem.target_ms
    assert costs[0].max() > problem.target_ms
    for index, allowed in enumerate(problem.space.widths):
        assert {widths.values_tuple()[index] for widths in drawn[0]} == set(allowed)


def test_a_cold_start_draws_weights_of_the_variance_that_the_fan_in_asks_for() -> None:
    problem = tiny_problem("resnet50", tile=1)
    scores = weight_norm(problem.model, problem.graph, problem.space, "l1")
    net = PruningNet(problem.model, problem.graph, problem.space, scores, hidden=32, warm=False)
    middle = problem.space.make([allowed[len(allowed) // 2] for allowed in problem.space.widths])
    dense = dict(problem.model.named_parameters())
    generated = {key: weight.detach() for key, weight in net.weights(middle).items() if key in net.encoded}
    large = [key for key, weight in generated.items() if weight.numel() > 500]
    assert len(large) >= 2
    for key in large:
        fan_in = generated[key][0].numel()
        assert 2 / fan_in * 0.8 < float(generated[key].var()) < 2 / fan_in * 2.2
        assert not torch.equal(generated[key], dense[key])


def test_weights_are_generated_in_full_precision_under_autocast() -> None:
    problem = tiny_problem("chain")
    net = made(problem)
    widths = problem.space.smallest()
    expected = net.weights(widths)
    with torch.autocast("cpu", torch.bfloat16):
        weights = net.weights(widths)
        assert net(images_of(problem), widths).dtype == torch.bfloat16
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
