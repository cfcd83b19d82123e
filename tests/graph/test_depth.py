"""Residual branches that vanish: which may, and what is left of them in torch and in ONNX."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hwprune.core.errors import GraphError, UsageError
from hwprune.core.widths import ChannelGroup, SearchSpace
from hwprune.graph import ChannelGraph, OnnxTemplate, Recipe, apply_recipe, cut, gate_parameters, mask, trace
from hwprune.graph.check import lively
from hwprune.graph.hollow import HollowConv2d
from hwprune.latency.features import Work
from hwprune.models import load_model
from hwprune.testing.methods import OneTensor
from hwprune.testing.networks import FAMILIES, build

SKIPPABLE = {
    "resnet_option_a": tuple(f"network.blocks.{n}.conv1" for n in range(5)),
    "resnet_option_b": tuple(f"network.blocks.{n}.conv1" for n in range(5)),
    "resnet18": tuple(f"network.blocks.{n}.conv1" for n in range(3)),
    "mobilenetv2": ("network.blocks.1.body.0.0",),
    "c2f": ("network.blocks.0.0.0", "network.blocks.1.0.0"),
    "subpixel": ("network.body.0",),
    "registered": ("network.stage.conv1",),
    "tied": ("network.first.conv1",),
}
QUICK = ("resnet_option_b", "mobilenetv2", "c2f")
with_branches = pytest.mark.parametrize("name", SKIPPABLE)
exported_branches = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in SKIPPABLE]
)


@cache
def traced(name: str) -> tuple[nn.Module, ChannelGraph, Tensor]:
    network, example = build(name)
    model = OneTensor(network, len(example)).eval()
    return model, trace(model, example[0]), example[0]


@cache
def exported(name: str) -> OnnxTemplate:
    model, graph, _ = traced(name)
    return OnnxTemplate.export(model, graph)


def skippable(graph: ChannelGraph) -> tuple[str, ...]:
    return tuple(group.name for group in graph.groups if group.skippable)


def keeps(graph: ChannelGraph) -> list[dict[str, list[int]]]:
    """All branches gone, and only the first; each with every second unit of another group gone too."""
    names = skippable(graph)
    other = next(group for group in graph.removable if group.name not in names)
    half = {other.name: list(range(1, other.units, 2))}
    return [{**half, **{name: [] for name in names}}, {**half, names[0]: []}]


def run(model: bytes, images: Tensor) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"input": images.numpy()})
    return np.asarray(output)


def nodes(model: bytes) -> list[onnx.NodeProto]:
    loaded = onnx.load_model_from_string(model)
    onnx.checker.check_model(loaded, full_check=True)
    return list(loaded.graph.node)


@pytest.mark.parametrize("name", FAMILIES)
def test_only_groups_inside_a_residual_branch_may_vanish(name: str) -> None:
    assert skippable(traced(name)[1]) == SKIPPABLE.get(name, ())


def test_reference_networks_have_branches() -> None:
    shapes = {"efficientnet_lite0": (3, 64, 64), "resnet20": (3, 32, 32)}
    counts = {}
    for name, shape in shapes.items():
        model = load_model(name, classes=10, input_shape=shape).eval()
        counts[name] = len(skippable(trace(model, torch.zeros(1, *shape))))
    assert counts == {"efficientnet_lite0": 9, "resnet20": 9}


@with_branches
def test_cut_equals_masked_equals_gated(name: str) -> None:
    model, graph, images = traced(name)
    for keep in keeps(graph):
        small, masked = cut(model, graph, keep), mask(model, graph, keep)
        gates = {}
        for group, kept in keep.items():
            gates[group] = torch.zeros(graph.group(group).units)
            gates[group][kept] = 1.0
        changed = gate_parameters(dict(model.named_parameters()), graph, gates)
        with torch.no_grad():
            expected = masked(images)
            torch.testing.assert_close(small(images), expected, rtol=0, atol=1e-5)
            torch.testing.assert_close(
                torch.func.functional_call(copy.deepcopy(model), changed, (images,)), expected, rtol=0, atol=1e-5
            )


@pytest.mark.parametrize("name", ["resnet_option_a", "resnet_option_b", "mobilenetv2"])
def test_the_cut_network_runs_on_other_image_sizes(name: str) -> None:
    model, graph, images = traced(name)
    larger = torch.randn(3, 3, images.shape[2] + 5, images.shape[3] + 2, generator=torch.Generator().manual_seed(0))
    keep = keeps(graph)[0]
    with torch.no_grad():
        torch.testing.assert_close(cut(model, graph, keep)(larger), mask(model, graph, keep)(larger), rtol=0, atol=1e-5)


@exported_branches
def test_the_onnx_file_has_fewer_nodes_and_the_same_outputs(name: str) -> None:
    model, graph, images = traced(name)
    template = exported(name)
    for keep in keeps(graph):
        small = cut(model, graph, keep)
        with torch.no_grad():
            expected = small(images).numpy()
        for file in (template.at(keep), template.with_state(keep, small.state_dict())):
            np.testing.assert_allclose(run(file, images), expected, rtol=0, atol=1e-5)
            gone = sum(1 for group, kept in keep.items() if not kept)
            assert len(nodes(file)) <= len(nodes(template.dense)) - 3 * gone
            initialisers = onnx.load_model_from_string(file).graph.initializer
            assert all(np.prod(item.dims) > 0 for item in initialisers if item.dims)
            prefixes = [group for group, kept in keep.items() if not kept]
            assert not {node.name for node in nodes(file)} & {f"{prefix}/Conv" for prefix in prefixes}
    assert len(nodes(template.at_widths(dict.fromkeys(skippable(graph), 0)))) < len(nodes(template.dense))


@pytest.mark.parametrize(("name", "additions"), [("mobilenetv2", 0), ("resnet_option_b", 3)])
def test_the_constant_moves_into_a_bias_where_no_activation_is_between(name: str, additions: int) -> None:
    template, graph = exported(name), traced(name)[1]
    dense = [node.op_type for node in nodes(template.dense)].count("Add")
    left = nodes(template.at({group: [] for group in skippable(graph)}))
    assert [node.op_type for node in left].count("Add") == additions < dense


def test_trained_weights_are_in_the_constant() -> None:
    """Batch normalisation of the vanished branch still learns: what it learned must be in the exported file."""
    model, graph, images = traced("resnet_option_b")
    keep = keeps(graph)[0]
    small = cut(model, graph, keep)
    with torch.no_grad():
        before = small(images).numpy()
        for tensor in (*small.parameters(), *small.buffers()):
            if tensor.is_floating_point() and tensor.numel():
                tensor.mul_(1.1).add_(0.01)
        after = small(images).numpy()
    assert np.abs(after - before).max() > 1e-2
    file = exported("resnet_option_b").with_state(keep, small.state_dict())
    np.testing.assert_allclose(run(file, images), after, rtol=0, atol=1e-5)


def test_the_cut_network_trains_and_its_recipe_rebuilds_it() -> None:
    model, graph, images = traced("resnet_option_a")
    keep = keeps(graph)[0]
    small = cut(model, graph, keep).train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    small(images).square().mean().backward()
    optimizer.step()
    small.eval()
    recipe = Recipe.from_json(Recipe.of(model, graph, keep).to_json())
    rebuilt = apply_recipe(recipe, model).eval()
    rebuilt.load_state_dict(small.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt(images), small(images))
    assert any(isinstance(module, HollowConv2d) for module in rebuilt.modules())


def test_a_convolution_with_a_bias_leaves_it() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 3, padding=1)
            self.inner, self.outer = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
            self.last = nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x + torch.sigmoid(self.outer(F.relu(self.inner(x))))
            return self.last(x)

    torch.manual_seed(0)
    model, images = Plain().eval(), torch.randn(2, 3, 6, 6)
    graph = trace(model, images)
    assert skippable(graph) == ("inner",)
    with torch.no_grad():
        x = model.stem(images)
        expected = model.last(x + torch.sigmoid(model.outer.bias)[:, None, None])
        torch.testing.assert_close(cut(model, graph, {"inner": []})(images), expected)
    file = OnnxTemplate.export(model, graph).at({"inner": []})
    np.testing.assert_allclose(run(file, images), expected.numpy(), rtol=0, atol=1e-5)
    assert [node.op_type for node in nodes(file)] == ["Conv", "Conv"]


# Exported in pieces and by a node of its own; an export takes seconds, so the others are slow tests.
ACTIVATIONS = (nn.GELU, nn.Hardswish)
OTHERS = (nn.SiLU, nn.ReLU6, nn.Mish, nn.ELU, nn.Sigmoid, nn.Tanh, nn.Softplus)


@pytest.mark.parametrize("activation", [*ACTIVATIONS, *(pytest.param(a, marks=pytest.mark.slow) for a in OTHERS)])
def test_any_activation_of_nothing_and_of_a_constant(activation: type[nn.Module]) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 1)
            self.body = nn.Sequential(
                nn.Conv2d(6, 4, 3, padding=1), nn.BatchNorm2d(4), activation(),
                nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), activation(),
            )  # fmt: skip
            self.last = nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            return self.last(self.body(x) + x)

    torch.manual_seed(0)
    images = torch.randn(1, 3, 5, 5)
    model = lively(Block(), (images,))
    graph = trace(model, images)
    assert skippable(graph) == ("body.0",)
    with torch.no_grad():
        expected = mask(model, graph, {"body.0": []})(images)
        torch.testing.assert_close(cut(model, graph, {"body.0": []})(images), expected, rtol=0, atol=1e-5)
    file = OnnxTemplate.export(model, graph).at({"body.0": []})
    np.testing.assert_allclose(run(file, images), expected.numpy(), rtol=0, atol=1e-5)
    assert [node.op_type for node in nodes(file)] == ["Conv", "Relu", "Add", "Conv"]


def test_widths_count_a_vanished_branch_as_nothing() -> None:
    _, graph, _ = traced("mobilenetv2")
    (name,) = skippable(graph)
    gone = [key for key in graph.ops({name: 0}) if 0 in (key.in_channels, key.out_channels) and key.kind == "conv"]
    assert len(gone) == 3
    assert all(key.macs == 0 for key in gone)
    space = graph.space(tile=2, depth=True)
    rows = np.array([space.dense().replace(name, width).values_tuple() for width in (0, graph.group(name).units)])
    assert graph.macs_batch(space, rows).tolist() == [graph.macs({name: 0}), graph.macs({})]
    assert graph.params_batch(space, rows)[0] == graph.params({name: 0})
    work = Work(graph.op_templates, space, 2).layers(rows)
    zero = [(work.reads[0] == 0) & (work.writes[0] == 0) & (work.macs[0] == 0) & (work.weights[0] == 0)]
    assert int(np.sum(zero)) == 3
    assert not bool((work.reads[1] == 0).any())
    assert np.isfinite(work.weights).all()


def test_width_zero_is_in_the_space_only_on_request() -> None:
    _, graph, _ = traced("resnet18")
    plain, deep = graph.space(tile=4), graph.space(tile=4, depth=True)
    assert all(allowed[0] > 0 for allowed in plain.widths)
    names = {name for name, allowed in zip(deep.names, deep.widths, strict=True) if allowed[0] == 0}
    assert names == set(skippable(graph))
    assert plain.signature() != deep.signature()
    assert SearchSpace.from_json(deep.to_json()) == deep
    assert SearchSpace.from_json(plain.to_json()) == plain
    assert "skippable" not in str(plain.to_json())


def test_other_groups_keep_at_least_one_unit() -> None:
    model, graph, _ = traced("resnet_option_b")
    stem = next(group.name for group in graph.removable if not group.skippable)
    with pytest.raises(GraphError, match="would keep no unit"):
        cut(model, graph, {stem: []})
    with pytest.raises(GraphError, match="cannot have width 0"):
        graph.macs({stem: 0})
    with pytest.raises(GraphError, match="are empty or not in"):
        exported("resnet_option_b").at({stem: []})
    with pytest.raises(UsageError, match="must ascend from 1"):
        SearchSpace((ChannelGroup("a", 8),), ((0, 8),))


def test_nothing_vanishes_where_the_constant_meets_more_than_a_sum() -> None:
    class Awkward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 3, padding=1)
            self.a, self.b, self.c = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 3, padding=1)
            self.d, self.e = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 6, 1)
            self.last = nn.Conv2d(12, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x + self.c(self.b(self.a(x)))
            return self.last(torch.cat([x, self.e(self.d(x))], 1))

    graph = trace(Awkward().eval(), torch.randn(1, 3, 6, 6))
    assert {group.name for group in graph.removable} >= {"a", "b", "d"}
    assert skippable(graph) == ()
