"""The two ways to generate weights from latents: the paper's three layers, and the product they collapse to.

`factored`: Z = z_out z_in^T (+ B0), E_ij = Z_ij w1_ij (+ b1_ij), O_ij = W2_ij E_ij (+ b2_ij) for every pair of an
output and an input channel; there is no activation in it. Without the biases that is O_ij = z_out_i z_in_j K_ij with
K_ij = W2_ij w1_ij: `collapsed` trains K itself, in the memory of the ordinary network and from its trained weights.
Source: Li et al. 2020, "DHP: Differentiable Meta Pruning via HyperNetworks", and its code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from hwprune.core.units import format_count
from hwprune.methods._dhp_latents import Latents, Wiring

Biases = Literal["off", "gated"]


class Collapsed(nn.Module):
    """Weights are the model's own, times the latents of their rows and columns."""

    def __init__(self, model: nn.Module, wiring: Wiring) -> None:
        super().__init__()
        self.wiring = wiring
        self.shapes = {name: tuple(model.get_parameter(name).shape) for name in wiring.generated}

    def weights(self, model: nn.Module, made: Tensor, read: Tensor) -> dict[str, Tensor]:
        """Every parameter that latents scale, for `called_with`; differentiable.

        `made` and `read`: the flat latents on the producer and on the consumer side (`Latents.flat`).
        """
        generated = {name: self.generate(name, model, made, read) for name in self.wiring.generated}
        gated = (name for name in self.wiring.names if name not in generated)
        plain = {name: model.get_parameter(name) for name in gated}
        return {
            **generated,
            **{name: weight * self.wiring.factor(name, made, read, weight.ndim) for name, weight in plain.items()},
        }

    def generate(self, name: str, model: nn.Module, made: Tensor, read: Tensor) -> Tensor:
        """The weight of one convolution."""
        kernel = self.kernel(name, model)
        return kernel * self.wiring.factor(name, made, read, kernel.ndim)

    def kernel(self, name: str, model: nn.Module) -> Tensor:
        """K of one convolution: its weight when all latents are 1."""
        return model.get_parameter(name)

    @torch.no_grad()
    def draw(self, model: nn.Module, latents: Latents, generator: torch.Generator) -> None:
        """Forget the weights: `W2 w1` of the hyper-fan-in initialisation for every generated convolution."""
        for name, scale in fan_in_scales(model, self.wiring, latents):
            first, second = _draw(self.shapes[name], 1, scale, generator)
            kernel = (second @ first[..., None]).squeeze(-1)
            model.get_parameter(name).copy_(kernel.reshape(self.shapes[name]))


class HyperLayer(nn.Module):
    """The hypernetwork of one convolution: `p` channel pairs, `m` values of embedding and `t` kernel taps a pair.

    `first` `(p, m)` is the paper's w1, `second` `(p, t, m)` its W2; the biases `(p,)`, `(p, m)` and `(p, t)` exist if
    asked for.
    """

    def __init__(self, weight: Tensor, embedding: int, *, biased: bool) -> None:
        super().__init__()
        self.shape = tuple(weight.shape)
        pairs, taps = self.shape[0] * self.shape[1], math.prod(self.shape[2:])
        self.first = nn.Parameter(weight.new_zeros(pairs, embedding))
        self.second = nn.Parameter(weight.new_zeros(pairs, taps, embedding))
        self.biased = biased
        if biased:
            self.bias_latent = nn.Parameter(weight.new_zeros(pairs))
            self.bias_embedding = nn.Parameter(weight.new_zeros(pairs, embedding))
            self.bias_output = nn.Parameter(weight.new_zeros(pairs, taps))

    def forward(self, latent: Tensor, gate: Tensor | None = None) -> Tensor:
        """The weight from the products of latents of each channel pair, broadcastable to `(d0, d1, 1, ...)`.

        `gate` of the same shape is 0.0 for pairs whose biases must not show, else 1.0.
        """
        latent = self._pairs(latent)
        if not self.biased:
            embedding = latent[:, None] * self.first
            return (self.second @ embedding[..., None]).reshape(self.shape)
        embedding = (latent + self.bias_latent)[:, None] * self.first + self.bias_embedding
        output = (self.second @ embedding[..., None]).squeeze(-1) + self.bias_output
        if gate is not None:
            output = output * self._pairs(gate)[:, None]
        return output.reshape(self.shape)

    @torch.no_grad()
    def draw(self, scale: float, generator: torch.Generator) -> None:
        """Hyper-fan-in: w1 uniform of variance 1, W2 uniform of variance `scale / m`; biases 0."""
        first, second = _draw(self.shape, self.first.shape[1], scale, generator)
        self.first.copy_(first)
        self.second.copy_(second)

    @torch.no_grad()
    def fit(self, kernel: Tensor) -> None:
        """Change W2 as little as possible so that `W2 w1` is this kernel."""
        wanted = kernel.reshape(self.second.shape[:2])
        missing = wanted - (self.second @ self.first[..., None]).squeeze(-1)
        self.second.add_(missing[..., None] * (self.first / self.first.square().sum(1, keepdim=True))[:, None])

    def _pairs(self, values: Tensor) -> Tensor:
        pair = values.reshape(values.shape[:2])
        return pair.expand(self.shape[:2]).reshape(-1)


class Factored(Collapsed):
    """Weights of convolutions by the paper's three layers, one private hypernetwork each.

    `m = embedding` changes the dynamics of training, not what can be expressed. A convolution takes
    `(2 m + m t + 1 + t) / t` times the memory of its weight with biases, `(m + m t) / t` without, t being its taps.
    """

    def __init__(self, model: nn.Module, wiring: Wiring, embedding: int, biases: Biases) -> None:
        super().__init__(model, wiring)
        biased = biases != "off"
        self.layers = nn.ModuleList(
            HyperLayer(model.get_parameter(name), embedding, biased=biased) for name in wiring.generated
        )

    def generate(self, name: str, model: nn.Module, made: Tensor, read: Tensor) -> Tensor:
        """The weight of one convolution; biases only between units whose latents are not 0."""
        layer, ndim = self.layer(name), len(self.shapes[name])
        latent = self.wiring.factor(name, made, read, ndim)
        if not layer.biased:
            return layer(latent)  # type: ignore[no-any-return]
        live_made, live_read = (flat.detach().ne(0).to(flat.dtype) for flat in (made, read))
        return layer(latent, self.wiring.factor(name, live_made, live_read, ndim))  # type: ignore[no-any-return]

    def kernel(self, name: str, model: nn.Module) -> Tensor:
        """`W2 w1` of one convolution."""
        layer = self.layer(name)
        return (layer.second @ layer.first[..., None]).reshape(layer.shape)

    def layer(self, name: str) -> HyperLayer:
        """The hypernetwork of a generated parameter."""
        layer = self.layers[self.wiring.generated.index(name)]
        if not isinstance(layer, HyperLayer):
            raise TypeError(f"{type(layer).__name__} among the hypernetworks")
        return layer

    def describe(self) -> str:
        """How large the hypernetworks are."""
        own = sum(parameter.numel() for parameter in self.parameters())
        plain = sum(math.prod(shape) for shape in self.shapes.values())
        return f"hypernetworks of {format_count(own)} parameters for {format_count(plain)} weights of convolutions"

    @torch.no_grad()
    def draw(self, model: nn.Module, latents: Latents, generator: torch.Generator) -> None:
        """The hyper-fan-in initialisation."""
        for name, scale in fan_in_scales(model, self.wiring, latents):
            self.layer(name).draw(scale, generator)

    @torch.no_grad()
    def fit(self, model: nn.Module) -> None:
        """Generate the model's own weights when all latents are 1."""
        for name in self.wiring.generated:
            self.layer(name).fit(model.get_parameter(name))


def fan_in_scales(model: nn.Module, wiring: Wiring, latents: Latents) -> Iterator[tuple[str, float]]:
    """For each generated convolution the variance of K that gives its weight a variance of 1 / fan-in.

    Where no norm follows, activations must keep theirs: an input channel was already scaled by its latent when it was
    made, so the sum runs over z^4, and the mean square of the output latents multiplies it.
    """
    modules = dict(model.named_modules())
    flat = latents.flat().detach()
    ones = torch.ones_like(flat)
    normed = _followed_by_norm(model)
    for name in wiring.generated:
        module = modules[name.rpartition(".")[0]]
        weight = model.get_parameter(name)
        transposed = isinstance(module, _ConvTransposeNd)
        groups = module.groups if isinstance(module, _ConvNd) else 1
        channels = weight.shape[0] // groups if transposed else weight.shape[1]
        fan_in = channels * math.prod(weight.shape[2:])
        made = wiring.factor(name, flat, ones, weight.ndim).square().mean()
        read = wiring.factor(name, ones, flat, weight.ndim).square()
        power = read.mean() if name in normed else read.square().mean() / read.mean()
        yield name, 1 / (fan_in * float(made * power))


def _followed_by_norm(model: nn.Module) -> set[str]:
    """Weights of convolutions registered right before a batch norm, as networks are usually written."""
    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    return {
        f"{name}.weight"
        for (name, module), (_, after) in itertools.pairwise(leaves)
        if isinstance(module, _ConvNd) and isinstance(after, nn.modules.batchnorm._NormBase)
    }


def _draw(shape: tuple[int, ...], embedding: int, scale: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """w1 `(p, m)` of variance 1 and W2 `(p, t, m)` of variance `scale / m`, both uniform."""
    pairs, taps = shape[0] * shape[1], math.prod(shape[2:])
    first = (2 * torch.rand(pairs, embedding, generator=generator) - 1) * math.sqrt(3)
    second = (2 * torch.rand(pairs, taps, embedding, generator=generator) - 1) * math.sqrt(3 * scale / embedding)
    return first, second
