"""The dense network's weights: those it came with, those of an equal training in another run, or a training now."""

from __future__ import annotations

import copy
import hashlib
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from hwprune.core.errors import UsageError
from hwprune.core.events import Caution, Note, OnEvent, Stop
from hwprune.core.files import read_json, write_json
from hwprune.core.statistics import median
from hwprune.models import load_weights, save_weights
from hwprune.search.settings import SearchSettings
from hwprune.search.workshop import Workshop
from hwprune.training import ArraySet, Classification, Data, Denoising, Task, TrainPlan, evaluate, train_dense
from hwprune.training._random import redraw

WEIGHTS, ORIGIN = "dense.safetensors", "dense_training.json"
TRAINED = 0.2  # a network this share of the way from chance to a perfect score has learned something
FRESH_DRAWS, FRESH_IMAGES = 5, 512  # under another score: as many untrained copies are scored on so many images
NOTHING_MARGIN_DB = 0.1  # what a denoiser must be better by than one that does nothing
FRESH_MARGIN = 3.0  # a trained network lies beyond the best of them by so many times what that lies above their middle


def dense_network(shop: Workshop) -> None:
    """Bring trained weights into the model: those it came with, or those of a training that is done once.

    Another run beside this one that trained the same network in the same way lends its weights. A network whose test
    score is given is that of a comparison, the same for all its runs, however well it does.
    """
    path = shop.folder.path / WEIGHTS

    def work() -> None:
        given = shop.dense_score is not None
        if given or is_trained(shop.model, shop.data, shop.task, shop.settings, shop.folder.emit):
            save_weights(shop.model, path)
            return
        origin = _training(shop.model, shop.data, shop.task, shop.settings)
        score = _lent(shop, origin)
        if score is None:
            checkpoint = shop.folder.checkpoint("dense")
            score = train(shop.model, shop.data, shop.task, shop.settings, checkpoint, shop.folder.emit, shop.stop)
        tell_chance(score, shop.data, shop.task, shop.folder.emit)
        save_weights(shop.model, path)
        write_json(shop.folder.path / ORIGIN, {"training": origin, "val_score": score})

    def load() -> None:
        load_weights(shop.model, path)

    shop.folder.stage("dense", work, load)
    shop.model.eval()


def is_trained(model: nn.Module, data: Data, task: Task, settings: SearchSettings, on_event: OnEvent) -> bool:
    """Whether to take the network as it is: some weights were named, no training is wanted, or it scores above chance.

    Chance is the largest class's share; for clean images the score of doing nothing; under a task of the user's own
    what untrained copies of the network score.
    """
    if settings.weights or not settings.dense_epochs:
        return True
    if not isinstance(task, Classification):
        images, targets = data.val.images[:FRESH_IMAGES], data.val.targets[:FRESH_IMAGES]
        data = replace(data, val=ArraySet(images, targets))
    score = evaluate(model, data, "val", task=task).score
    bound = _untrained(model, data, task, settings.seed)
    if score > bound:
        on_event(Note(f"the network scores {score:.4f} on validation data: taken as trained"))
        return True
    text = f"the network has no trained weights (validation score {score:.4f}): training it first"
    on_event(Note(f"{text}; --dense-epochs 0 takes it as it is"))
    return False


def train(
    model: nn.Module, data: Data, task: Task, settings: SearchSettings, checkpoint: Path, on_event: OnEvent, stop: Stop
) -> float:
    """Train the dense network in place, as the settings say; its validation score."""
    train_dense(
        model,
        data,
        task=task,
        plan=_plan(settings),
        seed=settings.seed,
        checkpoint=checkpoint,
        on_event=on_event,
        stop=stop,
    )
    return evaluate(model, data, "val", task=task).score


def tell_chance(score: float, data: Data, task: Task, on_event: OnEvent) -> None:
    """Say when a training has taught the network nothing: where it is about chance, so is all that follows."""
    if isinstance(task, Classification) and score <= _above_chance(data.val.targets, data.classes):
        text = f"after its training the dense network scores {score:.4f} on validation data, which is about chance"
        on_event(Caution(text, hint="more --dense-epochs, or train it yourself and give it with --weights"))


def _plan(settings: SearchSettings) -> TrainPlan:
    return TrainPlan(epochs=settings.dense_epochs, batch_size=settings.batch_size, precision=settings.train_precision)


def _untrained(model: nn.Module, data: Data, task: Task, seed: int) -> float:
    """The score that no untrained network reaches."""
    if isinstance(task, Classification):
        return _above_chance(data.val.targets, data.classes)
    if isinstance(task, Denoising):
        return _above_nothing(data.val, data.normalise(data.val.images), task)
    return _above_fresh(model, data, task, seed)


def _above_chance(targets: Tensor, classes: int) -> float:
    """The score that no untrained network reaches: twice chance, where that is far from perfect, and no accident."""
    chance = max(1 / classes, float(torch.bincount(targets.flatten()).max()) / targets.numel())
    error = math.sqrt(chance * (1 - chance) / len(targets))
    bound = max(min(2 * chance, chance + TRAINED * (1 - chance)), chance + 3 * error)
    return min(bound, (1 + chance) / 2)


def _above_nothing(split: ArraySet, inputs: Tensor, task: Denoising) -> float:
    """The better score of the images as they are and of the mean clean image, and a little."""
    constant = split.targets.mean((0, 2, 3), keepdim=True).expand_as(split.targets)
    return max(task.score(guess, split.targets) for guess in (inputs, constant)) + NOTHING_MARGIN_DB


def _above_fresh(model: nn.Module, data: Data, task: Task, seed: int) -> float:
    """The score that no untrained network reaches, from copies whose layers were initialised anew."""
    fresh = copy.deepcopy(model)
    scores = []
    with torch.random.fork_rng():
        for draw in range(FRESH_DRAWS):
            torch.manual_seed(seed + draw)
            for module in fresh.modules():
                _draw_anew(module)
            scores.append(evaluate(fresh, data, "val", task=task).score)
    finite = [score for score in scores if math.isfinite(score)]
    if not finite:
        return -math.inf
    return max(finite) + FRESH_MARGIN * (max(finite) - median(finite))


@torch.no_grad()
def _draw_anew(module: nn.Module) -> None:
    """Initialise a module's own weights; values that it cannot draw are shuffled, which keeps their size."""
    if redraw(module):
        return
    for parameter in module.parameters(recurse=False):
        shuffled = parameter.flatten()[torch.randperm(parameter.numel(), device=parameter.device)]
        parameter.copy_(shuffled.view_as(parameter))


def _training(model: nn.Module, data: Data, task: Task, settings: SearchSettings) -> str:
    """A hash of all that a dense training depends on; networks of one hash can still differ in their code."""
    digest = hashlib.sha256(repr((settings.model, task, _plan(settings), settings.seed)).encode())
    digest.update(data.fingerprint.encode())
    for name, tensor in model.state_dict().items():
        digest.update(repr((name, tensor.shape, tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _lent(shop: Workshop, origin: str) -> float | None:
    """Load the weights of a run beside this one that did the same training; their score, None where there is none.

    The network they make here must score what it scored there: its code may have changed in between.
    """
    before = copy.deepcopy(shop.model.state_dict())
    for path in sorted(shop.folder.path.parent.glob(f"*/{ORIGIN}")):
        told = _told_score(path, origin)
        if told is None:
            continue
        try:
            load_weights(shop.model, path.parent / WEIGHTS)
        except UsageError:  # gone, damaged, or of a network that has changed
            continue
        score = evaluate(shop.model, shop.data, "val", task=shop.task).score
        if score == told:
            shop.folder.emit(Note(f"trained in {path.parent.name} already: taken from there, it scores {score:.4f}"))
            return score
        shop.model.load_state_dict(before)
    return None


def _told_score(path: Path, origin: str) -> float | None:
    """What a run's dense network scored; None where its training was another one or the file cannot be read."""
    try:
        told = read_json(path)
        return float(told["val_score"]) if told["training"] == origin else None
    except (UsageError, KeyError, TypeError, ValueError):
        return None
