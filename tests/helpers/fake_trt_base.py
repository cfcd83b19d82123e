"""What all parts of the scripted TensorRT know: its script, the names of one version, the class of its objects."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fake_tensorrt import FakeTensorRt

NAMES_FILE = "tensorrt_api_names.json"
MAGIC = b"PLAN"


@dataclass
class Script:
    """What is to go wrong, and what was asked of the builder."""

    parser_errors: tuple[str, ...] = ()
    build_error: str | None = None
    plan_refused: bool = False
    context_refused: bool = False
    enqueue_refused: bool = False
    fp32_layers: tuple[str, ...] = ()
    wrong_outputs: bool = False
    foreign_timing_cache: bool = False
    no_timing_cache: str = ""  # none is made of a "saved" one, or of "any"
    compute: bool = True
    builders: int = 0
    builds: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Names:
    """What one version of the bindings has."""

    version: str
    classes: Mapping[str, frozenset[str]]
    enums: Mapping[str, Mapping[str, int]]
    top_level: frozenset[str]

    @classmethod
    def read(cls, path: Path, version: str) -> Names:
        """The names of a version; for 8.5.2, of which only a flat list is known, those of 8.6.1 that are in it."""
        document = json.loads(path.read_text())
        found = document[version if version in document else "8.6.1"]
        flat = set(document["source_names"].get(version, ()))

        def known(name: str) -> bool:
            return not flat or name in flat

        return cls(
            version,
            {name: frozenset(filter(known, members)) for name, members in found["classes"].items()},
            {
                name: {key: number for key, number in values.items() if known(key)}
                for name, values in found["enums"].items()
            },
            frozenset(filter(known, found["top_level"])),
        )


class Number(enum.Enum):
    """An enumeration as pybind11 makes it: it has a name, and a number only when asked for with int()."""

    def __int__(self) -> int:
        return int(self.value)


class Severity(Number):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class Fake:
    """What every fake object knows: the module it belongs to."""

    _module: FakeTensorRt
    _allowed: frozenset[str]

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_") and name not in self._allowed:
            raise AttributeError(f"TensorRT {self._module.names.version}: no attribute {type(self).__name__}.{name}")
        object.__setattr__(self, name, value)


def shape_of(item: Any) -> tuple[int, ...]:
    dims = item.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)
