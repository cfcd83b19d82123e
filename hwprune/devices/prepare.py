"""What the host does for a target's runtime: the model in the target's precision, and proof that it is computed right.

A latency counts only for a network that the runtime computes: before anything is timed, the outputs for three inputs
are compared with ONNX Runtime's. Runs on the host, where the `onnx` package is, for local and remote devices alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING
from typing import Protocol as Interface

from hwprune.core import plugins
from hwprune.core.errors import NetworkUnfit, UsageError
from hwprune.core.events import OnEvent, ignore
from hwprune.core.measurement import Fingerprint, LayerTime, Measurement, Protocol, Target
from hwprune.core.units import percent
from hwprune.devices.board import AbstractBoard, Anchor
from hwprune.devices.reference import doctor_model
from hwprune.runtimes._base import AbstractRuntime

if TYPE_CHECKING:
    import numpy as np

    from hwprune.runtimes._base import Check

CHECKED_INPUTS = 3
UNCHECKED = ("onnxruntime", "simulated")  # the one is the yardstick, the other computes nothing

# How far outputs may be off, as a share of how much they vary. Two ways of ONNX Runtime to compute a MobileNetV2 with
# random weights, the worst case seen, differ by 0.8 % in fp16 and 17 % in int8; a wrong layer costs about 100 %.
TOLERANCE = {"fp32": 0.002, "tf32": 0.03, "fp16": 0.03, "bf16": 0.2, "int8": 0.4}
# And as a share of their size, which is all that an output that hardly varies can be held to: its own rounding.
ROUNDING = {"fp32": 1e-6, "tf32": 1e-3, "fp16": 1e-3, "bf16": 8e-3, "int8": 1e-3}
_HINT = "this latency does not count; measure in fp32 to see whether the precision or the runtime is at fault"
_OVERFLOW = "this latency does not count; a half-precision overflow, if fp32 is right: normalise, or use bf16 or fp32"
SMALLEST_HALF = 6e-5  # what is smaller, half precision has few digits for


class WrongOutputs(NetworkUnfit):
    """The runtime does not compute the network: its outputs are not those of ONNX Runtime. No latency counts."""


def in_file(target: Target) -> bool:
    """Whether the target computes in another precision than fp32 because the ONNX file says so."""
    kind = plugins.load("hwprune.runtimes", target.runtime, AbstractRuntime)  # type: ignore[type-abstract]
    return target.precision in kind.precisions_in_model


@lru_cache(maxsize=4)
def prepare(model: bytes, target: Target) -> bytes:
    """The model as the target's runtime is to get it: with the precision in the file where the runtime reads it there.

    An int8 model gets the ranges of its activations from the inputs that its outputs are checked with: good for a
    latency, and for outputs that tell a right engine from a wrong one, not for accuracy on real images. A model that
    is quantised already keeps its own.
    """
    if not in_file(target):
        return model
    from hwprune.graph.onnx.precision import parse_model, to_precision

    if target.precision != "int8":
        return to_precision(model, target.precision)
    from hwprune.graph.onnx.quantize import activation_ranges, is_quantised

    if is_quantised(parse_model(model)):
        return model

    def run(watched: bytes, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return _expected(watched, [inputs], target.batch)[0]

    ranges = activation_ranges(model, inputs_to_compare(model, target.batch), run)
    return to_precision(model, target.precision, ranges=ranges)


def inputs_to_compare(model: bytes, batch: int) -> list[dict[str, np.ndarray]]:
    """The inputs that outputs are compared for: normal floats, ones for integers, the same in every process."""
    import onnx

    from hwprune.runtimes._inputs import example_inputs, fixed_inputs, onnx_inputs

    wanted = fixed_inputs(onnx_inputs(onnx.load_model_from_string(model)), batch)
    return [example_inputs(wanted, seed) for seed in range(1, CHECKED_INPUTS + 1)]


def _expected(model: bytes, batches: Sequence[Mapping[str, np.ndarray]], batch: int) -> list[list[np.ndarray]]:
    from hwprune.runtimes._expected import expected_outputs

    return expected_outputs(model, batches, batch=batch)


class Computes(Interface):
    """What outputs can be asked of: a board, or a runtime without one."""

    @property
    def target(self) -> Target: ...
    @property
    def fingerprint(self) -> Fingerprint: ...
    def infer(self, model: bytes, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]: ...


class CheckedBoard(AbstractBoard):
    """A board that times no network before its outputs are found right, once for each network and session."""

    def __init__(self, board: AbstractBoard) -> None:
        self._board = board
        self._right: set[str] = set()
        self.target = board.target
        self.fingerprint = board.fingerprint
        self.simulated = board.simulated
        self.distant = board.distant
        self.session_reference_ms = board.session_reference_ms

    @property
    def reference_ms(self) -> float:
        """The reference kernel's undisturbed time that every latency rests on."""
        return self._board.reference_ms

    @reference_ms.setter
    def reference_ms(self, value: float) -> None:
        self._board.reference_ms = value

    def close(self) -> None:
        self._board.close()

    def measure(
        self,
        models: Mapping[str, bytes],
        *,
        protocol: Protocol,
        seed: int = 0,
        anchor: Anchor | None = None,
        on_event: OnEvent = ignore,
    ) -> dict[str, Measurement]:
        """As `AbstractBoard.measure`; raises `WrongOutputs`, and times nothing, when one of the networks is wrong."""
        for name, model in models.items():
            self._check(model, name)
        if anchor is not None:
            self._check(anchor.model, "the anchor")
        return self._board.measure(models, protocol=protocol, seed=seed, anchor=anchor, on_event=on_event)

    def layers(self, model: bytes, *, runs: int = 30) -> tuple[LayerTime, ...]:
        self._check(model, "the network")
        return self._board.layers(model, runs=runs)

    def infer(self, model: bytes, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return self._board.infer(model, inputs)

    def checks(self) -> tuple[Check, ...]:
        """The board's own, and whether it computes the network that it is tried with."""
        from hwprune.runtimes._base import Check

        try:
            share = check_outputs(self._board, doctor_model(self.target.batch), "the probe")
        except WrongOutputs as error:
            return (*self._board.checks(), Check("outputs", "fail", error.message, error.hint))
        detail = f"those of ONNX Runtime ({percent(share, 0)} of what {self.fingerprint.precision} may be off)"
        return (*self._board.checks(), Check("outputs", "pass", detail))

    def _check(self, model: bytes, name: str) -> None:
        key = hashlib.sha256(model).hexdigest()
        if key not in self._right:
            check_outputs(self._board, model, name)
            self._right.add(key)


def check_outputs(board: Computes, model: bytes, name: str) -> float:
    """Compare the board's outputs for a model with ONNX Runtime's; the largest share of what is allowed.

    For int8 ONNX Runtime computes the same quantised network, else the original in fp32. Raises `WrongOutputs`.
    """
    fingerprint = board.fingerprint
    batches = inputs_to_compare(model, board.target.batch)
    reference = prepare(model, board.target) if board.target.precision == "int8" else model
    expected = _expected(reference, batches, board.target.batch)
    found = [board.infer(model, inputs) for inputs in batches]
    counts = {len(outputs) for outputs in found}
    if counts != {len(expected[0])}:
        raise WrongOutputs(
            f"'{name}': {fingerprint.runtime} gives {max(counts)} outputs, not {len(expected[0])}", hint=_HINT
        )
    pairs = zip(zip(*found), zip(*expected))
    return max(_share_of_allowed(*outputs, fingerprint, name) for outputs in pairs)


def _share_of_allowed(
    found: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...], fingerprint: Fingerprint, name: str
) -> float:
    """The error of one output over all inputs, as a share of what its precision allows. Raises `WrongOutputs`."""
    import numpy as np

    where = f"{fingerprint.runtime} on {fingerprint.device} in {fingerprint.precision}"
    shapes = found[0].shape, expected[0].shape
    if shapes[0] != shapes[1]:
        raise WrongOutputs(f"'{name}': {where} gives an output of shape {shapes[0]}, not {shapes[1]}", hint=_HINT)
    ours, right = (np.stack(arrays).astype(np.float64) for arrays in (found, expected))
    if not np.isfinite(right).all():
        raise UsageError(
            f"'{name}' gives NaN or infinity even in fp32: whether {where} is right cannot be told",
            hint="look at its weights, or give it trained ones",
        )
    if not np.isfinite(ours).all():
        raise WrongOutputs(f"'{name}': {where} gives NaN or infinity where numbers should be", hint=_OVERFLOW)
    precision = fingerprint.precision if fingerprint.precision in TOLERANCE else "bf16"
    error = float(np.sqrt(np.mean((ours - right) ** 2)))
    spread, size = float(right.std()), float(np.sqrt(np.mean(right**2)))
    floor = SMALLEST_HALF if precision in ("fp16", "int8") else 1e-30
    allowed = TOLERANCE[precision] * max(spread, floor) + ROUNDING[precision] * size
    if not error <= allowed:
        raise WrongOutputs(
            f"'{name}': the outputs of {where} are off by {error:.3g} (root mean square) from ONNX Runtime's, which"
            f" vary by {spread:.3g}; {allowed:.3g} is allowed",
            hint=_HINT,
        )
    return error / allowed
