"""Where a network runs, and the fingerprint of what a latency is true for. Standard library only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from hwprune.core.errors import UsageError

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")

# ONNX operators that stay in fp32 in a network of half precision: what writes such files and what judges engines agree.
# These add up squares, powers or many terms: their results or what they sum leave the range of half precision
# (largest 65504) for activations of ordinary size, and the ONNX standard asks for no wider accumulator.
# LayerNormalization is not among them: its `stash_type` makes the statistics fp32 by definition.
FP32_OPS = (
    "CumSum",
    "InstanceNormalization",
    "LpNormalization",
    "MeanVarianceNormalization",
    "Pow",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
)


@dataclass(frozen=True)
class Target:
    """Where a network is to run: device (a name or alias of a device file), runtime, precision, batch and threads."""

    device: str = "cpu"
    runtime: str = "onnxruntime"
    precision: str = "fp32"
    batch: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"unknown precision '{self.precision}'", hint=f"known: {', '.join(PRECISIONS)}")
        for name in ("batch", "threads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(f"{name} must be a whole number of 1 or more, not {value!r}")

    def label(self) -> str:
        """`cpu onnxruntime fp32 b1 t1`; begins with `SIMULATED` where no hardware is timed."""
        text = f"{self.device} {self.runtime} {self.precision} b{self.batch} t{self.threads}"
        return f"SIMULATED {text}" if self.runtime == "simulated" else text


@dataclass(frozen=True)
class Fingerprint:
    """What a latency is true for. `precision` is what is really computed in; `flags` are the runtime's settings."""

    device: str
    cpu_model: str
    cores: int
    runtime: str
    runtime_version: str
    precision: str
    batch: int
    threads: int
    os: str
    flags: tuple[tuple[str, str], ...] = ()

    def differences(self, other: Fingerprint) -> tuple[str, ...]:
        """One sentence a field that differs: `runtime_version: 1.31.1 != 1.30.0`; flags are compared one by one."""
        found = [
            f"{item.name}: {getattr(self, item.name)} != {getattr(other, item.name)}"
            for item in fields(self)
            if item.name != "flags" and getattr(self, item.name) != getattr(other, item.name)
        ]
        mine, theirs = dict(self.flags), dict(other.flags)
        found += [
            f"flag {name}: {mine.get(name, 'absent')} != {theirs.get(name, 'absent')}"
            for name in sorted(set(mine) | set(theirs))
            if mine.get(name) != theirs.get(name)
        ]
        return tuple(found)

    def digest(self) -> str:
        """A hash of all fields: two measurements with the same may stand in one table."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def target(self) -> Target:
        """The target this fingerprint was taken on."""
        return Target(self.device, self.runtime, self.precision, self.batch, self.threads)

    def to_json(self) -> dict[str, Any]:
        """A JSON document from which `from_json` makes an equal fingerprint."""
        return {**asdict(self), "flags": dict(self.flags)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Fingerprint:
        """The fingerprint that `to_json` wrote."""
        return cls(**{**document, "flags": tuple((str(k), str(v)) for k, v in document["flags"].items())})
