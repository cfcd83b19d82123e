"""A method's answer, and what settled it, on the disk: arrays in a safetensors file, the rest in JSON beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from hwprune.core.errors import RunError
from hwprune.core.files import atomic_write_bytes, read_json, write_json
from hwprune.core.widths import SearchSpace
from hwprune.methods._base import Answer
from hwprune.search.controller import Settlement, Trial


def save_answer(answer: Answer, folder: Path) -> None:
    """Write `answer.json`, the unit scores and, where the search trained them, the full-size weights."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(
        folder / "scores.safetensors",
        save_arrays({name: np.ascontiguousarray(values) for name, values in answer.scores.items()}),
    )
    if answer.state is not None:
        state = {name: tensor.detach().contiguous() for name, tensor in answer.state.items()}
        atomic_write_bytes(folder / "state.safetensors", save_tensors(state))
    document: dict[str, Any] = {
        "widths": dict(answer.widths),
        "keep": {name: list(units) for name, units in answer.keep.items()},
        "predicted_ms": answer.predicted_ms,
        "image_passes": answer.image_passes,
        "has_state": answer.state is not None,
    }
    write_json(folder / "answer.json", document)


def load_answer(folder: Path, space: SearchSpace) -> Answer:
    """The answer that `save_answer` wrote; `RunError` when it belongs to another search space or is damaged."""
    document = read_json(folder / "answer.json")
    try:
        widths = {str(name): int(width) for name, width in document["widths"].items()}
        space.check(widths)
        state = load_tensors((folder / "state.safetensors").read_bytes()) if document["has_state"] else None
        return Answer(
            space.make([widths[name] for name in space.names]),
            {name: tuple(int(unit) for unit in units) for name, units in document["keep"].items()},
            float(document["predicted_ms"]),
            load_arrays((folder / "scores.safetensors").read_bytes()),
            state,
            int(document["image_passes"]),
        )
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise RunError(f"the answer in {folder} cannot be read: {error}", hint="remove the run folder") from error


def save_settlement(settled: Settlement, folder: Path) -> None:
    """Write the chosen answer, without its weights, and every trial."""
    save_answer(replace(settled.chosen.answer, state=None), folder)
    trials = [
        {
            "widths": dict(trial.answer.widths),
            "predicted_ms": trial.answer.predicted_ms,
            "measured_ms": trial.measured_ms,
            "measured_ci_ms": list(trial.measured_ci_ms),
            "budget_ms": trial.budget_ms,
        }
        for trial in settled.trials
    ]
    chosen = settled.trials.index(settled.chosen)
    write_json(folder / "trials.json", {"chosen": chosen, "exhausted": settled.exhausted, "trials": trials})


def load_settlement(folder: Path, space: SearchSpace, answer: Answer) -> Settlement:
    """The settlement that `save_settlement` wrote; the chosen answer takes its weights from the search's `answer`.

    The other trials' answers are their widths and predictions only.
    """
    document = read_json(folder / "trials.json")
    chosen = replace(load_answer(folder, space), state=answer.state)
    trials = []
    try:
        for place, entry in enumerate(document["trials"]):
            widths = space.make([int(entry["widths"][name]) for name in space.names])
            tried = chosen if place == document["chosen"] else Answer(widths, {}, float(entry["predicted_ms"]), {})
            low, high = map(float, entry["measured_ci_ms"])
            trials.append(Trial(tried, float(entry["measured_ms"]), (low, high), float(entry["budget_ms"])))
        return Settlement(trials[document["chosen"]], tuple(trials), bool(document["exhausted"]))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise RunError(f"{folder / 'trials.json'} cannot be read: {error!r}", hint="remove the run folder") from error
