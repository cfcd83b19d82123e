"""From what a user types to a network: `load_model`, and weights from safetensors with a readable difference."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from hwprune.core import plugins
from hwprune.core.config import from_mapping
from hwprune.core.errors import DeviceError, UsageError, did_you_mean, unknown_name
from hwprune.core.files import atomic_write_bytes
from hwprune.core.specs import call_function, is_function, load_function, split_options
from hwprune.models._base import AbstractReference

PACKAGE = "hwprune.models"
LIBRARIES = ("torchvision", "timm")


def model_names() -> tuple[str, ...]:
    """The names of the reference networks; imports none of them."""
    return plugins.names(PACKAGE)


def names_model(spec: str) -> bool:
    """Whether a spec has the form of a network's name: a reference network, or a source with a name behind a colon."""
    name, _ = split_options(spec)
    return ":" in name or name in model_names()


def load_model(
    spec: str, *, classes: int | None = None, input_shape: tuple[int, ...] | None = None, seed: int = 0
) -> nn.Module:
    """The network that `spec` names, with fresh weights that depend on `seed` alone.

    `spec`: `NAME`, `NAME?width=2&classes=20`, `torchvision:NAME`, `timm:NAME`, `FILE.py:FUNCTION` or
    `PACKAGE.MODULE:FUNCTION`. `input_shape` is `(C, H, W)`; only C matters to the reference networks. A user's
    function gets `classes` and `input_shape` if it has parameters of these names.
    Raises `UsageError` for an unknown name or option and `DeviceError` for a missing package.
    """
    name, options = split_options(spec)
    classes = _classes(spec, options, classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        library, colon, entry = name.partition(":")
        if library in LIBRARIES and colon:
            return _from_library(library, entry, options, classes, input_shape)
        if is_function(name):
            return _from_function(name, options, classes, input_shape)
        return _reference(name, options, classes, input_shape)


def default_input_shape(spec: str) -> tuple[int, int, int] | None:
    """`(C, H, W)` the named network was designed for; None when only its author knows."""
    name, _ = split_options(spec)
    library, colon, entry = name.partition(":")
    if library == "timm" and colon:
        config = _import_library("timm").get_pretrained_cfg(entry)
        channels, height, width = config.input_size if config is not None else (3, 224, 224)
        return int(channels), int(height), int(width)
    if library == "torchvision" and colon:
        return (3, 299, 299) if entry == "inception_v3" else (3, 224, 224)
    if ":" in name:
        return None
    return plugins.load(PACKAGE, name, AbstractReference).default_input_shape  # type: ignore[type-abstract]


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Copy the tensors of a safetensors file into `model` (in place) and return it.

    Raises `UsageError` naming missing, unexpected, differently shaped and non-finite tensors; the model is then
    unchanged.
    `num_batches_tracked`, which has no influence on any output, may be missing from the file.
    """
    try:
        state = load_file(str(path))
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror or 'no such file'}", hint="check the path given with --weights"
        ) from error
    except SafetensorError as error:
        raise UsageError(
            f"{path} is not a safetensors file: {error}",
            hint="write one with safetensors.torch.save_file(model.state_dict(), FILE)",
        ) from error
    check_weights(model.state_dict(), state, where=str(path))
    _check_finite(state, path)
    model.load_state_dict(state, strict=False)
    return model


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's state dict as a safetensors file that `load_weights` reads, whole or not at all.

    A tensor with several names is in it under each of them: the format knows no shared memory.
    """
    state = model.state_dict()
    atomic_write_bytes(path, save({name: tensor.clone().contiguous() for name, tensor in state.items()}))


def check_weights(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], *, where: str) -> None:
    """Raise `UsageError` with the differences of keys and shapes between a model's state and a file's."""
    needed = {key for key in expected if not key.endswith("num_batches_tracked")}
    lines = [f"{key}: file {tuple(found[key].shape)}, model {tuple(value.shape)}" for key, value in expected.items()
             if key in found and found[key].shape != value.shape]  # fmt: skip
    lines += [f"{key}: not in the file" for key in sorted(needed - set(found))]
    lines += [f"{key}: not in the model" for key in sorted(set(found) - set(expected))]
    if lines:
        shown = "\n  ".join(lines[:8]) + (f"\n  and {len(lines) - 8} more" if len(lines) > 8 else "")
        raise UsageError(
            f"the weights in {where} do not fit the model in {len(lines)} tensors:\n  {shown}",
            hint="check the model's name, its width and its number of classes",
        )


def _check_finite(state: Mapping[str, Tensor], path: str | Path) -> None:
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise UsageError(
            f"{len(broken)} of the tensors in {path} hold NaN or infinite values, {broken[0]} among them",
            hint="the training that wrote them diverged; give an earlier checkpoint",
        )


def _classes(spec: str, options: dict[str, str], classes: int | None) -> int | None:
    text = options.pop("classes", None)
    if text is None:
        return classes
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"'{spec}': classes={text} is not a number of classes", hint="write a whole number from 1 on")
    if classes is not None and classes != int(text):
        raise UsageError(
            f"'{spec}' asks for {text} classes, but the data has {classes}",
            hint="leave classes= out: it follows from the data",
        )
    return int(text)


def _reference(
    name: str, options: Mapping[str, str], classes: int | None, input_shape: tuple[int, ...] | None
) -> nn.Module:
    if name not in model_names():
        raise _unknown_source(name)
    factory = plugins.load(PACKAGE, name, AbstractReference)  # type: ignore[type-abstract]
    reference = from_mapping(factory, options, where=name)
    channels = (input_shape or factory.default_input_shape)[0]
    return reference.build(classes or factory.default_classes, channels)


def _unknown_source(name: str) -> UsageError:
    library, colon, _ = name.partition(":")
    error = unknown_name("model", library, LIBRARIES if colon else model_names())
    known = ", ".join((*model_names(), "torchvision:NAME", "timm:NAME", "FILE.py:FUNCTION"))
    return UsageError(error.message, hint=f"known: {known}")


def _import_library(library: str) -> ModuleType:
    try:
        return importlib.import_module("torchvision.models" if library == "torchvision" else library)
    except ImportError as error:
        raise DeviceError(f"{library} is not installed", hint=f"pip install {library}") from error
    except RuntimeError as error:  # torchvision built for another torch: "operator torchvision::nms does not exist"
        raise DeviceError(
            f"{library} cannot be imported beside torch {torch.__version__}: {error}",
            hint="install the torchvision built for this torch, from the same source as torch",
        ) from error


def _from_library(
    library: str, name: str, options: Mapping[str, str], classes: int | None, input_shape: tuple[int, ...] | None
) -> nn.Module:
    if options:
        raise UsageError(f"unknown option '{next(iter(options))}' of {library}:{name}", hint="known: classes")
    module = _import_library(library)
    known = module.list_models()
    if name not in known:
        listed = "torchvision.models.list_models()" if library == "torchvision" else "timm.list_models()"
        raise UsageError(f"{library} has no model '{name}'.{did_you_mean(name, known)}", hint=f"{listed} names them")
    count = {} if classes is None else {"num_classes": classes}
    if library == "torchvision":
        # Segmentation and detection networks would fetch the weights of their backbones.
        backbone = "weights_backbone" in inspect.signature(module.get_model_builder(name)).parameters
        model = module.get_model(name, weights=None, **count, **({"weights_backbone": None} if backbone else {}))
    else:
        model = module.create_model(name, pretrained=False, in_chans=(input_shape or (3,))[0], **count)
    return _checked(model, f"{library}:{name}")


def _from_function(
    name: str, options: Mapping[str, str], classes: int | None, input_shape: tuple[int, ...] | None
) -> nn.Module:
    function = load_function(name)
    parameters = inspect.signature(function).parameters
    for key in options:
        if key not in parameters:
            raise UsageError(
                f"{name} has no parameter '{key}'.{did_you_mean(key, parameters)}",
                hint=f"it has: {', '.join(parameters) or 'none'}",
            )
    known = {"classes": classes, "input_shape": input_shape}
    given = {key: value for key, value in known.items() if value is not None and key in parameters}
    arguments = {**{key: _literal(value) for key, value in options.items()}, **given}
    return _checked(call_function(name, function, **arguments), name)


def _literal(text: str) -> int | float | bool | str:
    try:
        value = json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except ValueError:
        return text
    return value if isinstance(value, (int, float)) else text


def _checked(model: object, where: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise UsageError(f"{where} gave {type(model).__name__}, not a torch.nn.Module", hint="return the network")
    return model
