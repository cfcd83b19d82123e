"""What every trained search must do: stopped at a step and begun again, it goes on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from hwprune.core.errors import Interrupted
from hwprune.methods._base import AbstractMethod, Problem


def stop_at(step: int) -> Callable[[], bool]:
    """A stop that is asked after every step, and says so at that one."""
    asked = count(1)
    return lambda: next(asked) == step


def check_resumes(method: AbstractMethod, problem: Problem, folder: Path, *steps: int) -> None:
    """Assert that a search stopped at a step and resumed ends bit for bit as an uninterrupted one."""
    problem = replace(problem, plan=replace(problem.plan, checkpoint_s=0.0))
    (whole,) = method.search(problem)
    assert whole.state is not None
    for step in steps:
        checkpoint = folder / str(step)
        with pytest.raises(Interrupted):
            list(method.search(replace(problem, checkpoint=checkpoint, stop=stop_at(step))))
        (resumed,) = method.search(replace(problem, checkpoint=checkpoint))
        assert resumed.log is not None
        assert resumed.log.resumed_at == step
        assert (resumed.widths, resumed.keep) == (whole.widths, whole.keep)
        assert resumed.image_passes == whole.image_passes
        for group, scores in whole.scores.items():
            np.testing.assert_array_equal(resumed.scores[group], scores)
        assert resumed.state is not None
        for name, value in whole.state.items():
            assert torch.equal(value, resumed.state[name]), name
