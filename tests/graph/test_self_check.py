"""What the self-check must see: mistakes behind closed gates, in edits, in discrete outputs and in training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from traced_families import traced

from hwprune.graph import cut, mask, trace
from hwprune.graph.call import tensors_in
from hwprune.graph.check import Check

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    """A stem, whatever `make` adds, and a head that subclasses put together."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.fc = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 5)
        self.make()
        self.eval()

    def make(self) -> None:
        """Add layers."""

    def head(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(x).mean((2, 3)))  # type: ignore[no-any-return]


def removable(model: nn.Module) -> list[str]:
    return [group.name for group in trace(model, IMAGES).removable]


class Gated(Small):
    """A branch behind a number, with a mistake in it: the first eight channels, whoever they are, count twice."""

    gate: nn.Parameter

    def make(self) -> None:
        self.wide, self.narrow = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        wide = torch.cat([F.relu(self.wide(x))[:, :8] * 2, F.relu(self.wide(x))[:, 8:]], 1)
        return self.head(x + self.gate.tanh() * self.narrow(wide))


class Attention(Gated):
    """Attention whose temperature follows the number of channels that are left."""

    def make(self) -> None:
        self.query, self.key, self.value = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        query, key, value = self.query(x).flatten(2), self.key(x).flatten(2), self.value(x).flatten(2)
        scores = query.transpose(1, 2) @ key / math.sqrt(query.shape[1])
        return self.head(x + self.gate * (value @ scores.softmax(-1).transpose(1, 2)).view(x.shape))


@pytest.mark.parametrize("network", [Gated, Attention])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_a_closed_gate_hides_nothing(network: type[Gated], shape: tuple[int, ...]) -> None:
    found = []
    for value in (0.0, 1.0):
        model = network()
        model.gate = nn.Parameter(torch.full(shape, value))
        found.append(removable(model))
    assert found[0] == found[1] == ["stem"]


class Shuffled(Small):
    """A channel shuffle that keeps the number of groups, which must stay, and that of channels in attributes."""

    def make(self) -> None:
        self.groups, self.channels = 4, 16
        self.grouped, self.last = nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(F.relu(self.stem(x)))
        x = x.view(x.shape[0], self.groups, self.channels // self.groups, 8, 8)
        return self.head(self.last(F.relu(x.transpose(1, 2).reshape(x.shape[0], self.channels, 8, 8))))


@torch.no_grad()
def test_an_attribute_that_only_fits_one_unit_is_left_alone() -> None:
    model = Shuffled()
    graph = trace(model, IMAGES)
    assert "grouped" in [group.name for group in graph.removable]
    for width in range(1, 4):
        for keep in itertools.combinations(range(4), width):
            small = cut(model, graph, {"grouped": keep})
            assert (small.groups, small.channels) == (4, 4 * width)
            assert torch.allclose(small(IMAGES), mask(model, graph, {"grouped": keep})(IMAGES), atol=1e-6)


class Decided(Small):
    """A mistake, and then an output in which it hardly shows."""

    def __init__(self, output: str) -> None:
        super().__init__()
        self.output = output

    def make(self) -> None:
        self.wide, self.narrow = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 1)

    def forward(self, x: Tensor) -> object:
        x = F.relu(self.wide(F.relu(self.stem(x))))
        scores = self.head(self.narrow(torch.cat([x[:, :8] * 2, x[:, 8:]], 1)))
        if self.output == "filled":
            classes = torch.zeros(len(x), 2, dtype=torch.int64)
            classes[:, 1] = scores.argmax(1)
            return classes
        functions = {
            "scores": lambda: scores,
            "class": lambda: scores.argmax(1),
            "names": lambda: {"classes": scores.topk(2).indices.flatten(), "any": scores.exp() > 0},
            "bytes": lambda: (scores.sigmoid() * 255).to(torch.uint8),
            "rounded": lambda: scores.round(),
            "one hot": lambda: F.one_hot(scores.argmax(1), 5).float() * 2,
            "dead": lambda: F.relu(scores - 100),
        }
        return functions[self.output]()


@pytest.mark.parametrize("output", ["scores", "class", "names", "bytes", "rounded", "one hot", "dead", "filled"])
def test_a_discrete_output_is_judged_by_what_it_was_decided_from(output: str) -> None:
    assert removable(Decided(output)) == ["stem", "narrow"]


class Unsure(Small):
    """Every pixel a class between two that are equal but for rounding errors, which another width turns around."""

    def make(self) -> None:
        self.wide, self.scores = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.scores(self.wide(F.relu(self.stem(x))))
        rounding = 2e-7 if len(self.wide.weight) == 32 else -2e-7
        return torch.cat([x, x * (1 + rounding)], 1).argmax(1)


def test_a_tie_between_classes_pins_nothing() -> None:
    assert removable(Unsure()) == ["stem", "wide"]


class Cast(Small):
    """Computes in the type of its weights, whatever comes in, or always in half precision. `mistake`: as in `Gated`."""

    def __init__(self, dtype: torch.dtype, *, is_fixed: bool, mistake: bool) -> None:
        super().__init__()
        self.to(dtype)
        self.fixed, self.mistake = torch.float16 if is_fixed else None, mistake

    def make(self) -> None:
        self.wide, self.norm, self.narrow = nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32), nn.Conv2d(32, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x.to(self.fixed or self.fc.weight.dtype)))
        x = F.relu(self.norm(self.wide(x)))
        if self.mistake:
            x = torch.cat([x[:, :8] * 2, x[:, 8:]], 1)
        return self.head(self.narrow(x))


@pytest.mark.parametrize("mistake", [False, True])
@pytest.mark.parametrize(
    ("dtype", "is_fixed"), [(torch.float16, True), (torch.float16, False), (torch.bfloat16, False)]
)
def test_networks_that_cast(dtype: torch.dtype, is_fixed: bool, mistake: bool) -> None:
    expected = ["stem", "narrow"] if mistake else ["stem", "wide", "narrow"]
    model = Cast(dtype, is_fixed=is_fixed, mistake=mistake)
    assert removable(model) == expected
    assert [group.name for group in trace(model, IMAGES.to(dtype)).removable] == expected


def test_truth_values_beside_numbers() -> None:
    class Both(Decided):
        def forward(self, x: Tensor) -> object:
            scores = super().forward(x)
            assert isinstance(scores, Tensor)
            return {"scores": scores, "mask": scores > 0}

    assert removable(Both("scores")) == ["stem", "narrow"]


class Auxiliary(Small):
    """A second head that runs in training only, behind a norm that needs more than one image."""

    def make(self) -> None:
        self.body, self.norm, self.second = nn.Conv2d(16, 16, 1), nn.BatchNorm1d(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> object:
        x = F.relu(self.stem(x))
        scores = self.head(self.body(x))
        return (scores, self.second(self.norm(x.mean((2, 3))))) if self.training else scores


@pytest.mark.parametrize("batch", [1, 2])
def test_what_runs_only_in_training_keeps_its_channels(batch: int) -> None:
    model = Auxiliary()
    graph = trace(model, IMAGES[:batch])
    assert [group.name for group in graph.removable] == ["body"]
    assert "runs only in training" in graph.group("stem").reason
    first, second = cut(model, graph, {"body": [1, 2]}).train()(IMAGES)
    assert first.shape == second.shape == (2, 5)
    assert not model.training


def test_a_network_that_needs_targets_in_training_is_judged_without_it() -> None:
    class Targets(Auxiliary):
        def forward(self, x: Tensor, targets: Tensor | None = None) -> object:
            return super().forward(x) if targets is not None or not self.training else targets.sum()  # type: ignore[union-attr]

    assert removable(Targets()) == ["stem", "body"]


class Features:
    """What a network returns beside its scores, in one of the ways that people pack such things."""

    __slots__ = ("features", "owner")

    def __init__(self, features: Tensor, owner: object) -> None:
        self.features, self.owner = features, owner


class Packed(Small):
    """Scores, and features in some object."""

    def __init__(self, pack: Callable[[Tensor, nn.Module], object]) -> None:
        super().__init__()
        self.pack = pack

    def make(self) -> None:
        self.body, self.last = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> object:
        features = self.body(F.relu(self.stem(x)))
        return {"scores": self.head(self.last(F.relu(features))), "features": self.pack(features, self)}


def _circle(features: Tensor, model: nn.Module) -> object:
    outer = Features(features, None)
    outer.owner = SimpleNamespace(back=outer, model=model, names=("a", 1, None), forward=model.forward)
    return outer


PACKS: dict[str, Callable[[Tensor, nn.Module], object]] = {
    "namespace": lambda x, _: SimpleNamespace(features=x),
    "slots": Features,
    "nested": lambda x, _: [SimpleNamespace(inner=Features(x, "name"))],
    "circle": _circle,
    "set": lambda x, _: {x},
    "distribution": lambda x, _: torch.distributions.Normal(x, torch.ones_like(x), validate_args=False),
}


@pytest.mark.parametrize("pack", PACKS)
def test_outputs_are_found_in_any_object(pack: str) -> None:
    model = Packed(PACKS[pack])
    graph = trace(model, IMAGES)
    assert [group.name for group in graph.removable] == ["stem", "last"]
    assert graph.group("body").reason == "output: it is an output of the network"
    outputs = cut(model, graph, {"stem": [0, 1], "last": [3]})(IMAGES)
    assert [tuple(tensor.shape) for tensor in tensors_in(outputs)][:2] == [(2, 5), (2, 16, 8, 8)]


@pytest.mark.parametrize("family", ["registered", "tied", "transformer"])
def test_a_proof_leaves_its_own_network_whole(family: str) -> None:
    model, example, graph = traced(family)
    check = Check(model, example, norms_without_statistics=False)
    before = {name: (id(tensor), tensor.detach().clone()) for name, tensor in check.model.named_parameters()}
    assert check(graph, [group.name for group in graph.removable]) is None
    after = dict(check.model.named_parameters())
    assert after.keys() == before.keys()
    assert all(id(after[name]) == known and torch.equal(after[name], data) for name, (known, data) in before.items())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dim", [1, -1])
def test_small_scores_beside_large_boxes(seed: int, dim: int) -> None:
    class Detector(Decided):
        def forward(self, x: Tensor) -> object:
            scores, boxes = super().forward(x), self.fc(F.relu(self.stem(x)).mean((2, 3))).sigmoid() * 640
            assert isinstance(scores, Tensor)
            return torch.stack([boxes, scores.sigmoid()], dim)

    model = Detector("scores")
    torch.manual_seed(seed)
    for layer in (model.stem, model.wide, model.narrow, model.fc):
        layer.reset_parameters()
    with torch.no_grad():
        model.narrow.weight.mul_(5)
    assert "wide" not in removable(model)
