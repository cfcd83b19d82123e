"""Invariants 1, 2 and 7 of DHP: what hypernetworks generate."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from hwprune.graph import ChannelGraph, trace
from hwprune.methods._dhp_hyper import Collapsed, Factored, HyperLayer
from hwprune.methods._dhp_latents import Latents, Wiring, wire
from hwprune.testing.methods import Family, family
from hwprune.testing.networks import FAMILIES

every_family = pytest.mark.parametrize("name", FAMILIES)
# Together: plain, depthwise, grouped, transposed, pixel-shuffle, concat.
SHAPES = ("mobilenetv2", "grouped", "unet", "subpixel", "densenet")


def double(name: str) -> tuple[Family, nn.Module, Wiring, Latents]:
    made = family(name)
    model = copy.deepcopy(made.model).double()
    space = made.graph.space()
    latents = Latents(space, next(model.parameters()).detach(), normalise=False)
    return made, model, wire(model, made.graph, space), latents


def randomised(module: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def latent_of(graph: ChannelGraph, latents: Latents, parameter: str, dim: int, size: int) -> list[float]:
    """The latent of every position of a dim, from the graph's own slices; 1.0 where no group acts."""
    found = [1.0] * size
    for group, values in zip(graph.removable, latents.split(latents.values().detach()), strict=True):
        for piece in (*graph.producer_slices(group.name), *graph.consumer_slices(group.name)):
            if (piece.parameter, piece.dim) == (parameter, dim):
                for position, unit in zip(piece.positions, piece.units, strict=True):
                    found[int(position)] = float(values[int(unit)])
    return found


def slowly(layer: HyperLayer, first: list[float], second: list[float]) -> np.ndarray:
    """The hypernetwork's three layers as loops over channel pairs, taps and embedding."""
    rows, columns = layer.shape[:2]
    w1, w2 = layer.first.detach().numpy(), layer.second.detach().numpy()
    b0 = layer.bias_latent.detach().numpy() if layer.biased else np.zeros(rows * columns)
    b1 = layer.bias_embedding.detach().numpy() if layer.biased else np.zeros_like(w1)
    b2 = layer.bias_output.detach().numpy() if layer.biased else np.zeros(w2.shape[:2])
    output = np.zeros(w2.shape[:2])
    for i, j in itertools.product(range(rows), range(columns)):
        pair = i * columns + j
        latent = first[i] * second[j] + b0[pair]
        embedded = [latent * w1[pair, m] + b1[pair, m] for m in range(w1.shape[1])]
        gate = float(first[i] != 0 and second[j] != 0)
        for tap in range(w2.shape[1]):
            total = sum(w2[pair, tap, m] * value for m, value in enumerate(embedded)) + b2[pair, tap]
            output[pair, tap] = total * (gate if layer.biased else 1.0)
    return output.reshape(layer.shape)


@pytest.mark.parametrize("biases", ["off", "gated"])
@pytest.mark.parametrize("name", SHAPES)
def test_1_generated_weights_have_the_shapes_and_values_of_the_explicit_loops(name: str, biases: str) -> None:
    made, model, wiring, latents = double(name)
    hyper = Factored(model, wiring, 2, "gated" if biases == "gated" else "off").double()
    randomised(hyper)
    randomised(latents, 1)
    with torch.no_grad():
        latents.vector[::3] = 0.0
        generated = hyper.weights(model, latents.flat(), latents.flat())
    for parameter in wiring.generated:
        weight = model.get_parameter(parameter)
        assert generated[parameter].shape == weight.shape
        sides = [latent_of(made.graph, latents, parameter, dim, weight.shape[dim]) for dim in (0, 1)]
        expected = slowly(hyper.layer(parameter), sides[0], sides[1])
        np.testing.assert_allclose(generated[parameter].numpy(), expected, rtol=0, atol=1e-12)


@every_family
def test_1_every_convolution_of_a_group_is_generated_and_every_other_consumer_is_gated(name: str) -> None:
    made, model, wiring, _ = double(name)
    convolutions = {
        f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    }
    groups = [group.name for group in made.graph.removable]
    read = {piece.parameter for name in groups for piece in made.graph.consumer_slices(name)}
    written = {piece.parameter for name in groups for piece in made.graph.producer_slices(name)}
    assert read <= set(wiring.names)
    assert read & set(wiring.generated) == read & convolutions
    assert written & convolutions <= set(wiring.made)
    assert read
    assert written & convolutions or name == "transformer"


@every_family
def test_2_factored_without_biases_equals_collapsed_with_the_product_of_its_factors(name: str) -> None:
    made, model, wiring, latents = double(name)
    factored = Factored(model, wiring, 3, "off").double()
    randomised(factored)
    randomised(latents, 1)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in wiring.generated:
            twin.get_parameter(parameter).copy_(factored.kernel(parameter, model))
    images = made.data.train.images[:4].double()
    results = []
    for network, hyper in ((model, factored), (twin, Collapsed(twin, wiring))):
        outputs = functional_call(network, hyper.weights(network, latents.flat(), latents.flat()), (images,))
        (gradient,) = torch.autograd.grad(outputs.square().mean(), latents.vector)
        results.append((outputs.detach(), gradient))
    scale = float(results[0][1].abs().max())
    assert scale > 0
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-6, atol=1e-6 * scale)


def test_2_factored_can_start_from_trained_weights() -> None:
    _, model, wiring, latents = double("mobilenetv2")
    hyper = Factored(model, wiring, 4, "off").double()
    hyper.draw(model, latents, torch.Generator().manual_seed(0))
    before = hyper.layer(wiring.generated[0]).first.detach().clone()
    hyper.fit(model)
    assert torch.equal(before, hyper.layer(wiring.generated[0]).first)
    for parameter, weight in hyper.weights(model, latents.flat(), latents.flat()).items():
        torch.testing.assert_close(weight, model.get_parameter(parameter), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("backend", ["collapsed", "factored"])
def test_7_generated_weights_have_variance_one_over_fan_in(backend: str, normalise: bool) -> None:
    network = nn.Sequential(nn.Conv2d(3, 64, 3, bias=False), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 3, bias=False))
    network.extend([nn.BatchNorm2d(64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2)])
    graph = trace(network.eval(), torch.randn(1, 3, 8, 8))
    space = graph.space()
    wiring = wire(network, graph, space)
    ratios = []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        latents = Latents(space, next(network.parameters()).detach(), normalise=normalise)
        latents.draw(generator)
        hyper = Factored(network, wiring, 8, "gated") if backend == "factored" else Collapsed(network, wiring)
        hyper.draw(network, latents, generator)
        weight = hyper.weights(network, latents.flat(), latents.flat())["2.weight"].detach()
        ratios.append(float(weight.var()) * 64 * 9)
    assert 0.5 <= float(np.mean(ratios)) <= 2


@pytest.mark.parametrize("normalise", [False, True])
def test_7_without_norms_activations_keep_their_variance_over_ten_layers(normalise: bool) -> None:
    layers = [nn.Conv2d(48, 48, 3, bias=False) for _ in range(11)]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 2)).eval()
    graph = trace(network, torch.randn(1, 48, 26, 26))
    space = graph.space()
    wiring = wire(network, graph, space)
    changes = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        latents = Latents(space, next(network.parameters()).detach(), normalise=normalise)
        latents.draw(generator)
        hyper = Factored(network, wiring, 8, "off")
        hyper.draw(network, latents, generator)
        weights = hyper.weights(network, latents.flat(), latents.flat())
        powers = []
        signal: Tensor = torch.randn(1, 48, 26, 26, generator=generator)
        for number, layer in enumerate(layers):
            signal = functional_call(layer, {"weight": weights[f"{number}.weight"]}, (signal,)).detach()
            powers.append(float(signal.square().mean()))
        changes.append(powers[10] / powers[0])
    assert 1 / 3 <= float(np.exp(np.mean(np.log(changes)))) <= 3
