"""What stands beside a measurement of a network: a prediction, and the times of its layers. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Prediction:
    """What a latency model expects, never what was measured. `error_ms` is one sigma.

    `coverage` (0..1) is the share of the network that lies inside what the table behind the model covers. `simulated`:
    that table is of no hardware.
    """

    latency_ms: float
    error_ms: float
    coverage: float
    simulated: bool = False


@dataclass(frozen=True)
class LayerTime:
    """The time of one operator inside the whole network, as the runtime executes it.

    `name` is the ONNX node after fusion; `note` says what was fused into it or inserted by the runtime.
    """

    name: str
    kind: str
    latency_ms: float
    in_shapes: tuple[tuple[int, ...], ...] = ()
    out_shapes: tuple[tuple[int, ...], ...] = ()
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON document from which `from_json` makes an equal layer time."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> LayerTime:
        """The layer time that `to_json` wrote."""
        ins = tuple(tuple(shape) for shape in document["in_shapes"])
        outs = tuple(tuple(shape) for shape in document["out_shapes"])
        return cls(document["name"], document["kind"], document["latency_ms"], ins, outs, document["note"])
