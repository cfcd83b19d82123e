"""One proof: the cut, the masked and the gated network compared on the example, with weights that hide nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from hwprune.core.errors import GraphError
from hwprune.graph.call import tensors_in
from hwprune.graph.channel_graph import ChannelGraph
from hwprune.graph.evidence import Evidence, Result, is_constant, is_number
from hwprune.graph.gates import gate_parameters
from hwprune.graph.record import Place
from hwprune.graph.stateless import called_with
from hwprune.graph.surgery import cut, mask
from hwprune.graph.tape import copied, first_line, plain_attention, watch_modules

# Relative to the largest output; wrong wiring is off by a tenth or more, rounding by a millionth.
_TOLERANCE = 1e-4
# The same where a network insists on computing in one of these types.
_COARSE_TOLERANCE = 0.05
_COARSE = (torch.float16, torch.bfloat16)
# A number below the first multiplies a branch until nothing of it shows; it then counts as the second.
_CLOSED, _OPEN = 0.01, 0.75

# The proof in which the cut network must run in training as well.
_TRAINING_SEED = 1


@dataclass(frozen=True)
class Failure:
    """Why a set of groups cannot be removed; `module`: where the cut network stopped, if it did."""

    text: str
    module: str | None = None


class Check:
    """Tries sets of groups on copies of one model. `norms_without_statistics` proves wiring where norms are inexact."""

    def __init__(self, model: nn.Module, example: tuple[Tensor, ...], *, norms_without_statistics: bool) -> None:
        self._norms = norms_without_statistics
        self._tolerance = _TOLERANCE
        self._prepare(model, example)
        self._evidence = ""
        self._choose_evidence()

    def __call__(self, graph: ChannelGraph, names: Sequence[str], seed: int = 0) -> Failure | None:
        """What goes wrong when a quarter to three quarters of each group are removed; None if nothing does."""
        return self.difference(graph, _random_keep(graph, names, seed), in_training=seed == _TRAINING_SEED)

    def difference(
        self, graph: ChannelGraph, keep: Mapping[str, list[int]], *, in_training: bool = False
    ) -> Failure | None:
        """What goes wrong when these units stay, in eval mode and, on request, in training; None if nothing does."""
        small = cut(self.model, graph, keep)
        places: list[Place] = []
        watch_modules(small, places)
        try:
            result = self._run(lambda: small(*self._example))
        except Exception as error:  # noqa: BLE001 - the user's forward may raise anything on other shapes
            text = f"the network does not run without some of its channels: {first_line(error)}"
            return Failure(text, places[-1].path if places else None)
        masked = mask(self.model, graph, keep)
        if not _agree(result, self._run(lambda: masked(*self._example)), self._tolerance):
            return Failure("removing some of its channels changes what the others compute")
        if not _agree(result, self._gated(graph, keep), self._tolerance):
            return Failure("its channels act on the result in other ways than through the weights that read them")
        return self._training_failure(small, places) if in_training else None

    def _training_failure(self, small: nn.Module, places: list[Place]) -> Failure | None:
        """Where the cut network stops in training mode; None if the whole one stops there as well.

        A head that runs in training only is not on the tape. Batch norm may need a batch of more than one.
        """
        small.train()
        for example in (self._example, tuple(_twice(tensor) for tensor in self._example)):
            places.clear()
            stop = self._stop(small, example)
            if stop is None:
                return None
            if self._stop(copied(self.model).train(), example) is None:
                text = f"what runs only in training does not run without some of its channels: {stop}"
                return Failure(text, places[-1].path if places else None)
        return None

    def _stop(self, model: nn.Module, example: tuple[Tensor, ...]) -> str | None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._run(lambda: model(*example))
        except Exception as error:  # noqa: BLE001 - the user's forward may raise anything
            return first_line(error)
        return None

    def _prepare(self, model: nn.Module, example: tuple[Tensor, ...]) -> None:
        """Make a lively copy in float32, or in the model's own type if its code casts to that."""
        is_coarse = any(parameter.dtype in _COARSE for parameter in model.parameters())
        for keep_type in (False, True) if is_coarse else (False,):
            self._example = tuple(_lively_input(tensor, keep_type=keep_type) for tensor in example)
            try:
                self.model = lively(model, self._example, keep_type=keep_type)
            except Exception as error:  # noqa: BLE001 - the user's forward may raise anything
                failed = error
            else:
                self._tolerance = _COARSE_TOLERANCE if keep_type else _TOLERANCE
                return
        raise GraphError(
            f"{type(model).__name__} runs on the example input, but not with other weights: {first_line(failed)}",
            hint="every proof of the self-check needs weights without zeros; trace(..., verify=False) goes without",
        ) from failed

    def _run(self, function: Callable[[], object]) -> list[Result]:
        with torch.no_grad(), plain_attention(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            norms = _AffineNorms() if self._norms else nullcontext()
            evidence = Evidence(constants=self._evidence == "constants") if self._evidence else None
            with norms, evidence or nullcontext():
                outputs = tensors_in(function())
            return evidence.results(outputs) if evidence else [Result(output) for output in outputs]

    def _choose_evidence(self) -> None:
        """Follow what outputs were decided from only where there is something to follow: it takes time."""
        for level in ("decisions", "constants"):
            self._evidence = level
            results = self._run(lambda: self.model(*self._example))
            if all(result.is_telling for result in results):
                break
        if not any(result.grounds for result in results):
            self._evidence = ""

    def _gated(self, graph: ChannelGraph, keep: Mapping[str, list[int]]) -> list[Result]:
        gates = {}
        for name, kept in keep.items():
            gates[name] = torch.zeros(graph.group(name).units)
            gates[name][kept] = 1.0
        with torch.no_grad():
            changed = gate_parameters(dict(self.model.named_parameters()), graph, gates)
        return self._run(lambda: called_with(self.model, changed, *self._example))


class _AffineNorms(TorchFunctionMode):
    """Layer and group norms reduced to their weight and bias: their statistics change with a removal by design."""

    def __torch_function__(
        self, func: object, types: object, args: tuple[object, ...] = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        if func in (F.layer_norm, F.group_norm, F.rms_norm):
            names = ("input", "shape", "weight", "bias")
            given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
            return _affine(given, channels_last=func is not F.group_norm)
        return func(*args, **(kwargs or {}))  # type: ignore[operator]


def _affine(given: Mapping[str, object], *, channels_last: bool) -> Tensor:
    x = given["input"]
    assert isinstance(x, Tensor)
    for name in ("weight", "bias"):
        vector = given.get(name)
        if isinstance(vector, Tensor):
            if not channels_last:
                vector = vector.reshape(-1, *[1] * (x.ndim - 2))
            x = x * vector if name == "weight" else x + vector
    return x


def _random_keep(graph: ChannelGraph, names: Sequence[str], seed: int) -> dict[str, list[int]]:
    """Kept units of each group; the shares differ, so that a size taken for that of another group shows."""
    numbers = {group.name: number for number, group in enumerate(graph.groups)}
    keep = {}
    for name in names:
        units = graph.group(name).units
        width = _width(units, seed, np.random.default_rng(numbers[name]))
        chosen = np.random.default_rng((numbers[name], seed)).choice(units, width, replace=False)
        keep[name] = sorted(chosen.tolist())
    return keep


def _width(units: int, seed: int, rng: np.random.Generator) -> int:
    """How many units of a group stay in a proof: another number for every seed, as long as there are others.

    The first is not one: heads or shuffled channels of one unit each look right in any order.
    """
    widths = rng.permutation(np.arange(max(1, units // 4), max(1, min(units * 3 // 4, units - 1)) + 1)).tolist()
    widths.sort(key=lambda width: width == 1 and units > 2)
    return int(widths[seed % len(widths)])


def lively(model: nn.Module, example: tuple[Tensor, ...], *, keep_type: bool = False) -> nn.Module:
    """A copy in eval mode whose output depends on every layer, in float32 unless it shall keep a coarser type.

    A zero-initialised layer or gate would hide every mistake before it, and so would a signal that dies out because the
    running statistics of a network without training do not fit its activations.
    """
    copy = copied(model).eval()
    if not keep_type and any(parameter.dtype in _COARSE for parameter in copy.parameters()):
        copy = copy.float()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            if _is_closed_gate(name, parameter):
                parameter.fill_(_OPEN)
        for name, tensor in [*copy.named_parameters(), *copy.named_buffers()]:
            if tensor.is_floating_point() and is_constant(tensor):
                noise = torch.rand(tensor.shape, generator=generator)
                noise = noise + 0.5 if "var" in name or tensor.flatten()[0] > 0 else noise * 0.2 - 0.1
                tensor.copy_(noise.to(tensor.device, tensor.dtype))
        hooks = [item.register_forward_pre_hook(_calibrate) for item in copy.modules() if isinstance(item, _BatchNorm)]
        with plain_attention():
            copy(*example)
        for hook in hooks:
            hook.remove()
    return copy


def _calibrate(module: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Set the running statistics of a batch norm to those of its input."""
    x, mean, variance = args[0].float(), module.running_mean, module.running_var
    if isinstance(mean, Tensor) and isinstance(variance, Tensor) and x.numel() > x.shape[1]:
        dims = [dim for dim in range(x.ndim) if dim != 1]
        spread = x.var(dims, unbiased=False)
        mean.copy_(x.mean(dims) * 0.9)
        variance.copy_(spread + 0.1 * spread.mean() + 1e-6)


def _is_closed_gate(name: str, parameter: Tensor) -> bool:
    """A single number that holds a branch at nothing until it is trained (ReZero, SkipInit, attention's gamma)."""
    if name.endswith("bias") or parameter.numel() != 1 or not parameter.is_floating_point():
        return False
    return abs(float(parameter)) < _CLOSED


def _lively_input(tensor: Tensor, *, keep_type: bool) -> Tensor:
    if not keep_type and tensor.dtype in _COARSE:
        tensor = tensor.float()
    if not (tensor.is_floating_point() and is_constant(tensor)):
        return tensor
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tensor.shape, generator=generator).to(tensor.device, tensor.dtype)


def _twice(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor]) if tensor.ndim else tensor


def _agree(left: list[Result], right: list[Result], tolerance: float) -> bool:
    if [result.output.shape for result in left] != [result.output.shape for result in right]:
        return False
    pairs = [pair for one, other in zip(left, right, strict=True) for pair in _compared(one, other)]
    return all(_equal(one, other, tolerance) for one, other in pairs)


def _compared(one: Result, other: Result) -> list[tuple[Tensor, Tensor]]:
    """A decision is compared by its grounds alone: rounding errors may tip the balance where two classes are equal.

    Grounds that have other shapes are the channels that were removed.
    """
    pairs = [pair for pair in zip(one.grounds, other.grounds, strict=False) if pair[0].shape == pair[1].shape]
    if one.is_decided and len(pairs) == len(one.grounds) == len(other.grounds):
        return pairs
    return [*pairs, (one.output, other.output)]


def _equal(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Equal within the tolerance as a whole, and up to ten times closer where one channel is smaller than others.

    Scores between 0 and 1 may be joined to boxes of hundreds of pixels.
    """
    if not (is_number(one) and is_number(other)):
        return torch.equal(one, other)
    if not other.numel():
        return True
    error, size = (one - other).abs(), other.abs()
    limit = float(tolerance * size.max())
    if not float(error.max()) <= limit:
        return False
    for channels in {1, other.ndim - 1} if other.ndim > 1 else ():
        rest = [dim for dim in range(other.ndim) if dim != channels]
        allowed = (10 * tolerance * size.amax(rest)).clamp(limit / 10, limit)
        if not bool((error.amax(rest) <= allowed).all()):
            return False
    return True
