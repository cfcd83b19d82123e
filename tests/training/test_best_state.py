"""The last state of a training is kept unless validation speaks against it beyond chance."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hwprune.core.events import Caution, Event
from hwprune.testing.toys import toy_network
from hwprune.training import (
    FINETUNE,
    Classification,
    Data,
    ModelTrainee,
    TrainPlan,
    evaluate,
    finetune,
    train,
    train_dense,
)
from hwprune.training._best import BestState


class Killed(Exception):
    """Stands for a process that ends between two steps without saving."""


def _without_norm() -> nn.Sequential:
    """The toy network without its batch norm: a learning rate that is too high ruins it."""
    model = toy_network()
    model[1] = nn.Identity()
    return model


@pytest.fixture
def trained(data: Data) -> nn.Module:
    model = _without_norm()
    train_dense(model, data, plan=TrainPlan(epochs=40, batch_size=16, lr=0.1))
    assert evaluate(model, data).score > 0.9
    return model


RUIN = replace(FINETUNE, epochs=3, batch_size=16, lr=8.0, clip_norm=0.0, checkpoint_s=0)


def test_finetuning_that_ruins_a_network_leaves_it_as_it_was(data: Data, trained: nn.Module) -> None:
    before, events = copy.deepcopy(trained.state_dict()), []
    score = evaluate(trained, data).score
    log = finetune(trained, None, data, plan=RUIN, on_event=events.append)
    assert log.history[-1]["val_score"] < score - 0.3  # the training did run, and did harm
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    told = [event for event in events if isinstance(event, Caution)]
    assert [event.text for event in told] == [
        f"finetune ended with a validation score of {log.history[-1]['val_score']:.4f}, worse than {score:.4f} before"
        " it: that state is kept"
    ]
    assert told[0].hint == "lower --lr (now 8)"


@pytest.mark.parametrize("kill_at", [1, 6, 7, 12, 18])
def test_a_resumed_training_keeps_the_same_state(data: Data, trained: nn.Module, tmp_path: Path, kill_at: int) -> None:
    model, steps, events = copy.deepcopy(trained), iter(range(1, 100)), list[Event]()

    def stop() -> bool:
        if next(steps) == kill_at:
            raise Killed
        return False

    with pytest.raises(Killed):
        finetune(model, None, data, plan=RUIN, checkpoint=tmp_path, stop=stop)
    resumed = copy.deepcopy(trained)
    finetune(resumed, None, data, plan=RUIN, checkpoint=tmp_path, on_event=events.append)
    expected = trained.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.state_dict().items())
    assert any(isinstance(event, Caution) and "that state is kept" in event.text for event in events)


def test_an_ordinary_training_ends_in_its_last_state(data: Data) -> None:
    """Bit for bit what the same training without validation gives."""
    plan = TrainPlan(epochs=8, batch_size=16, lr=0.1)
    plain, kept = toy_network(), toy_network()
    train(ModelTrainee(plain, Classification(), plan), data, plan=plan, stage="dense")
    train_dense(kept, data, plan=plan)
    assert all(torch.equal(value, kept.state_dict()[name]) for name, value in plain.state_dict().items())


class _Scripted:
    """A trainee whose state is one number, and the validation scores that go with each number."""

    def __init__(self, scores: list[Tensor]) -> None:
        self.scores, self.now = scores, 0

    def state(self) -> dict[str, Tensor]:
        return {"now": torch.tensor(self.now)}


def _watched(scores: list[Tensor]) -> BestState:
    trainee = _Scripted(scores)
    best = BestState(lambda: trainee.scores[trainee.now])
    for trainee.now in range(len(scores)):
        best.look(trainee, trainee.now)  # type: ignore[arg-type]
    return best


def _right(count: int, of: int) -> Tensor:
    return (torch.arange(of) < count).float()


@pytest.mark.parametrize(
    ("scores", "epoch", "regretted"),
    [
        pytest.param([_right(90, 100), _right(89, 100)], 0, False, id="one image of a hundred is chance"),
        pytest.param([_right(90, 100), _right(80, 100)], 0, True, id="ten images are not"),
        pytest.param([_right(90, 100), _right(95, 100), _right(50, 100)], 1, True, id="the best of all"),
        pytest.param([_right(90, 100), _right(90, 100)], 1, False, id="of equal ones the later"),
        pytest.param([_right(50, 100), _right(95, 100)], 1, False, id="the last is the best"),
        pytest.param([_right(1, 2), torch.tensor([torch.nan, 0.0])], 0, False, id="two examples prove nothing"),
        pytest.param([_right(9, 10), torch.full((10,), torch.nan)], 0, True, id="broken outputs"),
        pytest.param([torch.full((10,), torch.nan), _right(1, 10)], 1, False, id="no longer broken"),
        pytest.param([torch.full((5,), 30.0), torch.full((5,), 29.0)], 0, True, id="worse by as much everywhere"),
    ],
)
def test_the_rule(scores: list[Tensor], epoch: int, regretted: bool) -> None:
    """Paired over the examples: the mean of 10 lost ones of 100 is 0.1 with a standard error of 0.03."""
    best = _watched(scores)
    assert (best.epoch, int(best.tensors["now"]), best.regretted) == (epoch, epoch, regretted)


class _LogLikelihood(Classification):
    """A score of the user's own that is -inf for one image."""

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        found = outputs.log_softmax(1).gather(1, targets[:, None])[:, 0]
        return torch.where(torch.arange(len(found)) == 3, -torch.inf, found)


def test_scores_that_are_no_numbers_end_no_training(data: Data, tmp_path: Path) -> None:
    log = finetune(toy_network(), None, data, task=_LogLikelihood(), plan=RUIN, checkpoint=tmp_path)
    assert log.steps == 18
    assert [set(epoch) for epoch in log.history] == [{"loss", "lr"}] * 3
