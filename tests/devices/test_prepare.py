"""What the host does before a runtime sees a model, and that no latency counts for outputs that are wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx_tools import model_of, run

from hwprune.core.errors import UsageError
from hwprune.core.events import OnEvent, ignore
from hwprune.core.measurement import Fingerprint, LayerTime, Measurement, Protocol, Target
from hwprune.devices import connect
from hwprune.devices.board import AbstractBoard, Anchor, Board
from hwprune.devices.prepare import (
    CHECKED_INPUTS,
    TOLERANCE,
    CheckedBoard,
    WrongOutputs,
    check_outputs,
    inputs_to_compare,
    prepare,
)
from hwprune.devices.reference import doctor_model
from hwprune.runtimes._base import Check
from hwprune.testing.runtimes import conv_net

Outputs = list[np.ndarray]
Spoil = Callable[[Outputs], Outputs]


def as_they_are(outputs: Outputs) -> Outputs:
    return outputs


class MadeUpBoard(AbstractBoard):
    """ONNX Runtime under another name, its outputs spoilt; counts what is asked of it."""

    def __init__(self, precision: str = "fp32", spoil: Spoil = as_they_are, batch: int = 1) -> None:
        self.target = Target("made-up", "tensorrt", precision, batch)
        self.fingerprint = Fingerprint("made-up", "chip", 1, "tensorrt", "0", precision, batch, 1, "os")
        self.reference_ms = self.session_reference_ms = 1.0
        self.simulated = False
        self.spoil = spoil
        self.asked: list[str] = []

    def infer(self, model: bytes, inputs: Mapping[str, np.ndarray]) -> Outputs:
        self.asked.append("infer")
        return self.spoil(run(prepare(model, self.target), inputs))

    def measure(
        self,
        models: Mapping[str, bytes],
        *,
        protocol: Protocol,
        seed: int = 0,
        anchor: Anchor | None = None,
        on_event: OnEvent = ignore,
    ) -> dict[str, Measurement]:
        self.asked.append("measure")
        return {}

    def layers(self, model: bytes, *, runs: int = 30) -> tuple[LayerTime, ...]:
        self.asked.append("layers")
        return ()

    def checks(self) -> tuple[Check, ...]:
        return (Check("first", "pass", "of the board"),)

    def close(self) -> None:
        self.asked.append("close")


def _types(model: bytes) -> set[int]:
    return {tensor.data_type for tensor in onnx.load_from_string(model).graph.initializer}


def test_a_model_gets_the_precision_that_its_runtime_reads_in_it() -> None:
    model = conv_net(16)
    assert prepare(model, Target(runtime="onnxruntime")) is model
    assert prepare(model, Target(runtime="tensorrt", precision="tf32")) is model
    assert prepare(model, Target(runtime="openvino", precision="bf16")) is model  # OpenVINO is told, not shown
    assert _types(prepare(model, Target(runtime="tensorrt", precision="fp16"))) == {TensorProto.FLOAT16}
    int8 = prepare(model, Target(runtime="tensorrt", precision="int8"))
    assert _types(int8) == {TensorProto.FLOAT, TensorProto.INT8}
    assert prepare(model, Target(runtime="tensorrt", precision="int8")) is int8  # done once


def test_the_inputs_repeat_and_differ() -> None:
    first, again = inputs_to_compare(conv_net(16), 1), inputs_to_compare(conv_net(32), 1)
    assert len(first) == CHECKED_INPUTS
    assert all(np.array_equal(a["input"], b["input"]) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0]["input"], first[1]["input"])
    assert first[0]["input"].dtype == np.float32


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "int8"])
def test_right_outputs_pass(precision: str) -> None:
    share = check_outputs(MadeUpBoard(precision), conv_net(24, batch=1), "net")
    assert share < 0.3


def test_a_network_of_several_images() -> None:
    assert check_outputs(MadeUpBoard("fp16", batch=3), conv_net(16, batch=3), "net") < 1


SPOILT: dict[str, Spoil] = {
    "zeros": lambda outputs: [np.zeros_like(value) for value in outputs],
    "channels in another order": lambda outputs: [value[:, ::-1].copy() for value in outputs],
    "turned": lambda outputs: [np.swapaxes(value, 2, 3).copy() for value in outputs],
    "of another image": lambda outputs: [np.roll(value, 3, axis=2) for value in outputs],
    "one and a half times as large": lambda outputs: [1.5 * value for value in outputs],
    "shifted": lambda outputs: [value + value.std() for value in outputs],
}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_wrong_outputs_are_told(spoil: Spoil, precision: str) -> None:
    with pytest.raises(
        WrongOutputs, match=f"'net': the outputs of tensorrt on made-up in {precision} are off by"
    ) as caught:
        check_outputs(MadeUpBoard(precision, spoil), conv_net(24), "net")
    assert "measure in fp32" in caught.value.hint
    assert caught.value.exit_code == 3


def test_what_is_allowed_is_a_share_of_how_much_the_outputs_vary() -> None:
    def by(share: float) -> Spoil:
        signs = np.where(np.arange(14 * 14) % 2, 1.0, -1.0).reshape(14, 14)
        return lambda outputs: [value + share * spread * signs for value in outputs]

    outputs = [run(conv_net(24), inputs)[0] for inputs in inputs_to_compare(conv_net(24), 1)]
    spread = float(np.stack(outputs).std())
    limit = TOLERANCE["fp32"]
    assert check_outputs(MadeUpBoard(spoil=by(0.9 * limit)), conv_net(24), "net") == pytest.approx(0.9, rel=0.01)
    with pytest.raises(WrongOutputs):
        check_outputs(MadeUpBoard(spoil=by(1.1 * limit)), conv_net(24), "net")


def test_outputs_that_hardly_vary_are_not_asked_for_more_than_their_rounding() -> None:
    nodes = [("Mul", ["input", "small"], ["a"], {}), ("Add", ["a", "large"], ["output"], {})]
    tensors = {"small": np.array(1e-3, np.float32), "large": np.array(100, np.float32)}
    model = model_of(nodes, tensors, inputs={"input": (1, 64)}, output="output").SerializeToString()
    assert check_outputs(MadeUpBoard("fp16"), model, "net") < 1  # all that half precision has left is 100
    with pytest.raises(WrongOutputs):
        check_outputs(MadeUpBoard("fp16", lambda outputs: [value + 0.5 for value in outputs]), model, "net")


def test_outputs_of_another_form() -> None:
    with pytest.raises(WrongOutputs, match=r"gives an output of shape \(1, 24, 14, 13\), not \(1, 24, 14, 14\)"):
        check_outputs(MadeUpBoard(spoil=lambda outputs: [outputs[0][..., 1:]]), conv_net(24), "net")
    with pytest.raises(WrongOutputs, match="gives 2 outputs, not 1"):
        check_outputs(MadeUpBoard(spoil=lambda outputs: outputs * 2), conv_net(24), "net")


def test_outputs_that_are_no_numbers() -> None:
    with pytest.raises(WrongOutputs, match="gives NaN or infinity where numbers should be") as caught:
        check_outputs(MadeUpBoard("fp16", lambda outputs: [np.full_like(outputs[0], np.inf)]), conv_net(24), "net")
    assert "overflow" in caught.value.hint
    broken = model_of([("Log", ["input"], ["output"], {})], {}, inputs={"input": (1, 8)}, output="output")
    with pytest.raises(UsageError, match="'net' gives NaN or infinity even in fp32"):
        check_outputs(MadeUpBoard(), broken.SerializeToString(), "net")


def test_nothing_is_timed_before_its_outputs_are_right() -> None:
    board = MadeUpBoard(spoil=SPOILT["zeros"])
    checked = CheckedBoard(board)
    with pytest.raises(WrongOutputs):
        checked.measure({"net": conv_net(24)}, protocol=Protocol.quick())
    with pytest.raises(WrongOutputs):
        checked.layers(conv_net(24))
    assert set(board.asked) == {"infer"}


def test_one_wrong_network_keeps_its_neighbours_from_being_timed() -> None:
    board = MadeUpBoard()
    checked = CheckedBoard(board)
    board.spoil = lambda outputs: outputs if outputs[0].shape[1] == 16 else [0 * outputs[0]]
    with pytest.raises(WrongOutputs, match="'wide'"):
        checked.measure({"narrow": conv_net(16), "wide": conv_net(24)}, protocol=Protocol.quick())
    assert "measure" not in board.asked


def test_a_network_is_checked_once() -> None:
    board = MadeUpBoard()
    checked = CheckedBoard(board)
    for _ in range(2):
        checked.measure({"net": conv_net(24)}, protocol=Protocol.quick())
        checked.layers(conv_net(24))
    assert board.asked == [*["infer"] * CHECKED_INPUTS, *["measure", "layers"] * 2]


def test_an_anchor_is_checked_like_any_network() -> None:
    checked = CheckedBoard(MadeUpBoard(spoil=lambda outputs: [output + 1 for output in outputs]))
    with pytest.raises(WrongOutputs, match="the anchor"):
        checked.measure({}, protocol=Protocol.quick(), anchor=Anchor(conv_net(24), 1.0))


def test_a_checked_board_is_the_board() -> None:
    board = MadeUpBoard("fp16")
    with CheckedBoard(board) as checked:
        checked.reference_ms = 2.0
        assert (board.reference_ms, checked.reference_drift) == (2.0, -0.5)
        assert checked.label() == board.label()
        assert checked.fingerprint == board.fingerprint
        inputs = inputs_to_compare(conv_net(16), 1)[0]
        np.testing.assert_array_equal(checked.infer(conv_net(16), inputs)[0], board.infer(conv_net(16), inputs)[0])
    assert board.asked[-1] == "close"


def test_doctor_says_whether_the_outputs_are_right() -> None:
    first, outputs = CheckedBoard(MadeUpBoard("fp16")).checks()
    assert (first.name, outputs.name, outputs.status) == ("first", "outputs", "pass")
    assert "of what fp16 may be off" in outputs.detail
    wrong = CheckedBoard(MadeUpBoard(spoil=SPOILT["zeros"])).checks()[-1]
    assert (wrong.name, wrong.status) == ("outputs", "fail")
    assert "the probe" in wrong.detail
    assert wrong.fix
    assert doctor_model(1)


def test_every_runtime_but_the_yardstick_is_checked() -> None:
    with connect(Target()) as board:
        assert isinstance(board, Board)
    pytest.importorskip("openvino")
    with connect(Target(runtime="openvino")) as board:
        assert isinstance(board, CheckedBoard)
