"""The best state that a training went through, by its validation scores, in case the last one is worse."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hwprune.training._trainee import AbstractTrainee, below

CHANCE = 2.0  # standard errors of a mean difference that chance alone is allowed


@dataclass
class BestState:
    """Keeps the state with the best mean of `score()`, the validation scores `(N,)` of the network in training.

    Of equal states the later one is kept. `epoch` and `best` are where it was and what it scored, `last` is what the
    newest state scored.
    """

    score: Callable[[], Tensor]
    epoch: int = -1
    best: Tensor = field(default_factory=lambda: torch.empty(0))
    last: Tensor = field(default_factory=lambda: torch.empty(0))
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def begun(self) -> bool:
        """Whether any state was looked at."""
        return self.epoch >= 0

    def look(self, trainee: AbstractTrainee, epoch: int) -> float:
        """Score the state after `epoch` epochs and keep a copy where it is the best so far; its mean score."""
        self.last = self.score().detach().double().cpu()
        if not self.begun or _mean(self.last) >= _mean(self.best):
            self.epoch, self.best = epoch, self.last
            self.tensors = {name: tensor.detach().clone() for name, tensor in trainee.state().items()}
        return float(self.last.mean())

    @property
    def regretted(self) -> bool:
        """Whether the best state beats the newest by more than chance, paired over the validation examples."""
        lost = _finite(self.best) - _finite(self.last)
        if not len(lost) or not lost.mean() > 0:
            return False
        return float(lost.mean()) > CHANCE * float(lost.std(correction=0)) / math.sqrt(len(lost))

    def state(self) -> dict[str, Tensor]:
        """All that a resumed training needs, by name."""
        if not self.begun:
            return {}
        kept = {f"tensors/{name}": tensor for name, tensor in self.tensors.items()}
        return {"epoch": torch.tensor(self.epoch), "best": self.best, "last": self.last, **kept}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        if state:
            self.epoch, self.best, self.last = int(state["epoch"]), state["best"], state["last"]
            self.tensors = below("tensors/", state)


def _mean(scores: Tensor) -> float:
    return float(_finite(scores).mean())


def _finite(scores: Tensor) -> Tensor:
    """The scores with those of broken outputs as the worst there is, so that they can be compared."""
    return torch.nan_to_num(scores, nan=-1e9, posinf=1e9, neginf=-1e9)
