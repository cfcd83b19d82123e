"""What ships: the file in the precision that was measured, its proof against torch, and what that file scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hwprune.core.errors import GraphError
from hwprune.core.events import Caution, Note
from hwprune.core.files import atomic_write_bytes, write_json
from hwprune.devices.prepare import in_file
from hwprune.graph import Recipe
from hwprune.models import save_weights
from hwprune.report.run_data import SHIPPED
from hwprune.runtimes._expected import expected, expected_outputs
from hwprune.search.precision import in_precision
from hwprune.search.run_folder import ONNX, ONNX_FP32
from hwprune.search.workshop import Workbench, example_input
from hwprune.training import Data

OUTPUT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Shipment:
    """The exported network and the files it becomes, once it is to replace what the run folder holds.

    `onnx` has the types that the target's runtime reads in the file, `fp32` is what it was made from; often the same.
    """

    onnx: bytes
    fp32: bytes
    model: nn.Module
    recipe: Recipe

    def write(self, shop: Workbench) -> None:
        """Write the network as ONNX (also as fp32, where that is another), as recipe and weights; and the dense one."""
        folder = shop.folder.path
        atomic_write_bytes(folder / "dense.onnx", shop.template.dense)
        if self.onnx != self.fp32:
            atomic_write_bytes(folder / ONNX_FP32, self.fp32)
        atomic_write_bytes(folder / ONNX, self.onnx)
        save_weights(self.model, folder / "best.safetensors")
        write_json(folder / "recipe.json", self.recipe.to_json())


def export_network(shop: Workbench, small: nn.Module, keep: Mapping[str, Sequence[int]]) -> Shipment:
    """What ships, checked against torch; nothing is written yet.

    In fp32 the target's runtime is held against torch. Other precisions round as they should; there the fp32 file is
    held against torch in ONNX Runtime, and the board compares its outputs for the converted one before it times it.
    """
    plain = shop.template.with_state(keep, small.state_dict())
    precision = shop.settings.target.precision
    images = example_input(shop.data, shop.settings.batch)
    infer = shop.board.infer if precision == "fp32" else expected
    difference = _difference(small, images, infer(plain, {"input": images.numpy()}))
    if not difference <= OUTPUT_TOLERANCE:  # NaN agrees with nothing
        raise GraphError(
            f"the exported network differs from the torch one by {difference:.2g} (relative; limit {OUTPUT_TOLERANCE})",
            hint="please report this model: the export is wrong",
        )
    shop.folder.emit(Note(f"exported network agrees with torch within {difference:.1e} (relative)"))
    shipped = plain
    if in_file(shop.settings.target):
        shipped = in_precision(plain, precision, images, shop.data, expected, shop.settings.seed).model
    elif precision != "fp32":
        shop.folder.emit(Caution(f"the score is that of fp32: what {precision} costs is decided in the engine"))
    return Shipment(shipped, plain, small, Recipe.of(shop.model, shop.graph, keep))


def shipped_score(shop: Workbench, shipment: Shipment) -> dict[str, float]:
    """The test score of the file itself by its name among scores; nothing where the file computes as torch does."""
    if shipment.onnx == shipment.fp32:
        return {}
    outputs = shipped_outputs(shipment.onnx, shop.data, shop.settings.batch)
    score = shop.task.score(outputs, shop.data.test.targets)
    shop.folder.emit(Note(f"test score {score:.4f} ({SHIPPED}, {shop.settings.target.precision})"))
    return {SHIPPED: score}


def shipped_outputs(model: bytes, data: Data, batch: int) -> Tensor:
    """What an ONNX file with inputs `(batch, C, H, W)` answers on the test split, `(images, ...)`, in ONNX Runtime."""
    answers = expected_outputs(model, _batches(data, batch), batch=batch, threads=torch.get_num_threads())
    outputs = np.concatenate([outputs[0] for outputs in answers])
    return torch.from_numpy(outputs[: len(data.test)]).float()


def _batches(data: Data, batch: int) -> Iterator[dict[str, np.ndarray]]:
    """The test images in batches of one size; the last one is filled up with images from the beginning."""
    for begin in range(0, len(data.test), batch):
        indices = torch.arange(begin, begin + batch) % len(data.test)
        yield {"input": np.ascontiguousarray(data.batch("test", indices)[0].numpy())}


@torch.no_grad()
def _difference(small: nn.Module, images: Tensor, found: Sequence[np.ndarray]) -> float:
    """Largest difference to torch's output, relative to the largest output."""
    wanted = small.eval()(images).numpy()
    return float(np.abs(found[0] - wanted).max() / max(1e-12, float(np.abs(wanted).max())))
