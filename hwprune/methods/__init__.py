"""One file a pruning method, found by its name; `_base.py` is the contract between a method and the search."""

from __future__ import annotations

from hwprune.core import plugins
from hwprune.methods._base import AbstractMethod, Answer, Problem

__all__ = ["AbstractMethod", "Answer", "Problem", "load", "names"]


def names() -> tuple[str, ...]:
    """The methods that exist, sorted; imports none of them."""
    return plugins.names(__name__)


def load(name: str) -> type[AbstractMethod]:
    """The class of a method; its dataclass fields are its options. Raises `UsageError` for an unknown name."""
    return plugins.load(__name__, name, AbstractMethod)  # type: ignore[type-abstract]
