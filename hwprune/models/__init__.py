"""Reference networks, found by name, and everything else that turns a user's words into an `nn.Module`."""

from hwprune.models._base import AbstractReference
from hwprune.models._load import (
    check_weights,
    default_input_shape,
    load_model,
    load_weights,
    model_names,
    names_model,
    save_weights,
)

__all__ = [
    "AbstractReference",
    "check_weights",
    "default_input_shape",
    "load_model",
    "load_weights",
    "model_names",
    "names_model",
    "save_weights",
]
