"""The dense network as ONNX: one quiet torch export, cleaned so that it can be cut without torch.

The exporter runs without its optimiser: initialisers keep the names of the state dict and every BatchNormalization
stays a node of its own, so that trained weights can be put in and cut later.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from hwprune.core.errors import GraphError
from hwprune.graph.onnx.clean import clean
from hwprune.graph.onnx.network import Array, Network, from_model

EXPORT_OPSET = 18  # the oldest the exporter writes by itself; `clean` lowers it
Infer = Callable[[bytes, Mapping[str, Array]], Sequence[Array]]


def export_network(model: nn.Module, example: tuple[Tensor, ...]) -> Network:
    """The module as a cleaned `Network` in eval mode, with the batch size of `example`; the module is not changed.

    Raises `GraphError` with the exporter's reason when torch cannot export the module.
    """
    with _evaluating(model), _silent(), torch.no_grad():
        try:
            program = torch.onnx.export(
                model, example, dynamo=True, optimize=False, opset_version=EXPORT_OPSET, verbose=False
            )
        except (torch.onnx.OnnxExporterError, torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
            raise GraphError(
                f"torch cannot export {type(model).__name__} to ONNX: {_reason(error)}",
                hint="torch.onnx.export(model, example, dynamo=True) shows the whole report",
            ) from error
    if program is None:
        raise GraphError(f"torch exported nothing for {type(model).__name__}")
    return clean(from_model(program.model_proto, state_names(model)))


def state_names(model: nn.Module) -> frozenset[str]:
    """Every name of a parameter or buffer, the second names of shared ones included."""
    parameters = model.named_parameters(remove_duplicate=False)
    buffers = model.named_buffers(remove_duplicate=False)
    return frozenset(name for name, _ in (*parameters, *buffers))


def shared_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """For each name of a parameter or buffer all names of the same tensor, itself included."""
    by_identity: dict[int, list[str]] = {}
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    for name, tensor in named:
        by_identity.setdefault(id(tensor), []).append(name)
    return {name: tuple(by_identity[id(tensor)]) for name, tensor in named}


def check_against_torch(
    onnx_bytes: bytes, model: nn.Module, example: tuple[Tensor, ...], tolerance: float, infer: Infer
) -> float:
    """The largest difference between the outputs of an ONNX file, run by `infer`, and of the module in eval mode.

    Relative to the largest value of an output where that exceeds 1, else absolute. Raises `GraphError` when it exceeds
    `tolerance` or an output is missing, of another shape or not finite.
    """
    names = [value.name for value in onnx.load_model_from_string(onnx_bytes).graph.input]
    with _evaluating(model), torch.no_grad():
        expected = [value.numpy(force=True) for value in flat_tensors(model(*example))]
    found = infer(onnx_bytes, dict(zip(names, (value.numpy(force=True) for value in example), strict=True)))
    if len(found) != len(expected):
        raise GraphError(f"the ONNX file gives {len(found)} outputs, the module {len(expected)}")
    worst = max(
        (_difference(*pair, index) for index, pair in enumerate(zip(found, expected, strict=True))), default=0.0
    )
    if not worst <= tolerance:
        raise GraphError(
            f"the ONNX file differs from the module by {worst:.3g}, more than {tolerance:g}",
            hint="put the module into eval mode; if it is, please report this model: the export is wrong",
        )
    return worst


def _difference(found: Array, expected: Array, index: int) -> float:
    if found.shape != expected.shape:
        raise GraphError(f"output {index} of the ONNX file has the shape {found.shape}, the module's {expected.shape}")
    ours, theirs = found.astype(np.float64), expected.astype(np.float64)
    return float(np.abs(ours - theirs).max(initial=0.0) / max(1.0, np.abs(theirs).max(initial=0.0)))


def flat_tensors(output: object) -> list[Tensor]:
    """The tensors of a module's output in the order in which the exporter names them."""
    leaves, _ = torch.utils._pytree.tree_flatten(output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Drop what the exporter prints, warns and logs: its progress says nothing to a user of ours."""
    previous = logging.root.manager.disable
    sink = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(previous)


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause: the exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
