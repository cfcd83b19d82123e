"""What a user may name as a network to time, and the ONNX bytes behind it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hwprune.core.errors import GraphError, UsageError, did_you_mean
from hwprune.core.specs import split_options
from hwprune.graph.onnx.precision import parse_model
from hwprune.graph.onnx.template import whole_onnx
from hwprune.graph.recipe import state_hash
from hwprune.models import default_input_shape, load_model, load_weights, model_names, names_model
from hwprune.search.run_folder import find_run, fp32_onnx
from hwprune.search.settings import DEFAULTS
from hwprune.search.tables import table_name
from hwprune.training import load_data

SIZE_LIMIT_BYTES = 2**31
NO_NETWORK = "its verdict is infeasible, or it did not finish"
DAMAGED = "write it again; a run folder is written again by its own command, into another --run-dir"


def onnx_subjects(names: tuple[str, ...], *, batch: int, shape: tuple[int, ...] | None = None) -> dict[str, bytes]:
    """Name -> ONNX bytes for files, run folders (their dense and pruned network) and model names.

    `shape` is the input shape of the models, batch included; files and runs have their own.
    """
    if not names:
        raise UsageError("nothing to measure", hint="hwprune bench dense.onnx model.onnx")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{twice} is named twice", hint="to see how steady the machine is: hwprune doctor")
    found: dict[str, bytes] = {}
    runs: set[Path] = set()
    for name in names:
        if name.lower().endswith(".onnx"):
            found[name] = read_onnx(Path(name))
        elif Path(name).is_file():
            raise UsageError(f"{name} is a file, and not called .onnx", hint="rename it if it is an ONNX file")
        elif (folder := run_or_model(name)) is not None:
            if not fp32_onnx(folder).exists():
                raise UsageError(f"{folder} has no pruned network", hint=NO_NETWORK)
            if folder.resolve() in runs:
                raise UsageError(f"the run {folder} is named twice", hint="give each run once")
            runs.add(folder.resolve())
            run = folder.name if f"{folder.name}/dense" not in found else str(folder)
            found[f"{run}/dense"] = read_onnx(folder / "dense.onnx")
            found[f"{run}/pruned"] = read_onnx(fp32_onnx(folder))
        else:
            model, example = named_model(name, shape, batch=batch)
            found[name] = whole_onnx(model, (example,))
    return found


def run_or_model(name: str | Path) -> Path | None:
    """The run folder of that name; None where it names a model. `UsageError` for neither, with what there is."""
    try:
        return find_run(name)
    except UsageError as error:
        text = split_options(str(name))[0]
        if names_model(str(name)):
            return None
        if text == "last":
            raise
        raise UsageError(
            f"'{name}' is neither a run nor a model.{did_you_mean(text, model_names())}",
            hint=f"{error.hint}; models: {', '.join(model_names())}, torchvision:NAME, timm:NAME, FILE.py:FUNCTION",
        ) from error


def read_onnx(path: Path) -> bytes:
    """The bytes of an ONNX file; `UsageError` when it cannot be read, is none, or is too large for one file."""
    try:
        if path.stat().st_size >= SIZE_LIMIT_BYTES:
            raise UsageError(f"{path} has {path.stat().st_size} bytes; ONNX files end at 2 GiB")
        data = path.read_bytes()
        parse_model(data)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except GraphError as error:
        raise UsageError(f"{path} is damaged: {error.message}", hint=DAMAGED) from error
    return data


def named_model(
    spec: str,
    shape: tuple[int, ...] | None,
    *,
    batch: int,
    classes: int | None = None,
    weights: Path | None = None,
    seed: int = 0,
) -> tuple[nn.Module, Tensor]:
    """The network that `spec` names and an example input `(batch, C, H, W)`.

    `shape` is a whole input shape, batch included, or None for the network's own. Raises `UsageError` when nobody
    knows the shape.
    """
    image = shape[1:] if shape is not None else default_input_shape(spec)
    if image is None:
        raise UsageError(f"the input shape of {spec} is not known", hint="add --input 1x3x224x224")
    model = load_model(spec, classes=classes, input_shape=tuple(image), seed=seed)
    if weights is not None:
        load_weights(model, weights)
    size = (shape[0] if shape is not None else batch, *image)
    return model.eval(), example_of(size[1:], size[0])


def model_name(model: str | nn.Module | None) -> str | None:
    """A text for any model; an object is named by its class and the hash of its state."""
    if isinstance(model, nn.Module):
        return f"{type(model).__name__}-{state_hash(model)[:8]}"
    return model


def example_of(image: Sequence[int], batch: int) -> Tensor:
    """A batch `(batch, *image)` in the range of normalised images, the same every time."""
    return torch.randn(batch, *image, generator=torch.Generator().manual_seed(0))


def check_own_weights(model: object, weights: object) -> None:
    """Raise `UsageError` for weights that are named beside a network object, which would be ignored."""
    if isinstance(model, nn.Module) and weights is not None:
        raise UsageError("a model object has weights of its own", hint="load them into it, and leave weights out")


def model_and_example(
    model: str | Path | nn.Module | None,
    x: Tensor | tuple[int, ...] | None,
    data: str | None,
    batch: int,
    seed: int,
    *,
    weights: str | Path | None = None,
) -> tuple[nn.Module, Tensor, str]:
    """The network, an example input and the name for its tables."""
    if isinstance(model, nn.Module):
        if x is None:
            raise UsageError("a model object needs an example input", hint="pass x, a tensor or a shape")
        check_own_weights(model, weights)
        return model, x if isinstance(x, Tensor) else example_of(x[1:], x[0]), table_name(str(model_name(model)))
    spec = str(model) if model is not None else DEFAULTS.model
    classes = None
    shape = tuple(x.shape) if isinstance(x, Tensor) else x
    if data is not None or model is None:
        loaded = load_data(data or DEFAULTS.data)
        classes = loaded.classes or None
        shape = shape or (batch, *loaded.input_shape)
    path = None if weights is None else Path(weights)
    network, example = named_model(spec, shape, batch=batch, classes=classes, weights=path, seed=seed)
    return network, x if isinstance(x, Tensor) else example, table_name(spec)
