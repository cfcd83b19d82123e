"""Distillation, dense training, and batch-norm recalibration."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from hwprune.testing.toys import toy_network
from hwprune.training import (
    FINETUNE,
    Augment,
    Classification,
    Data,
    ModelTrainee,
    TrainPlan,
    evaluate,
    finetune,
    generator,
    predict,
    recalibrate_bn,
    train_dense,
)


def _quiet(model: nn.Module) -> nn.Module:
    """Without dropout, so that two forward passes agree."""
    model[5] = nn.Identity()
    return model


def test_the_distillation_loss_is_the_weighted_sum(data: Data) -> None:
    plan = TrainPlan(distill_alpha=0.7, temperature=2.0)
    student, teacher = _quiet(toy_network(0)), toy_network(1).train()
    images, targets = data.batch("train", torch.arange(16))
    found = ModelTrainee(student, Classification(), plan, teacher=teacher).loss(images, targets, 0.0)
    assert teacher.training
    with torch.no_grad():
        own, reference = student(images), teacher.eval()(images)
    hard = nn.functional.cross_entropy(own, targets)
    soft = nn.functional.kl_div(
        nn.functional.log_softmax(own / 2, 1), nn.functional.softmax(reference / 2, 1), reduction="batchmean"
    )
    assert float(found.detach()) == pytest.approx(float(0.3 * hard + 0.7 * 4 * soft), rel=1e-4)


def test_without_a_teacher_the_targets_alone_count(data: Data) -> None:
    student = _quiet(toy_network())
    images, targets = data.batch("train", torch.arange(16))
    found = ModelTrainee(student, Classification(), TrainPlan()).loss(images, targets, 0.0)
    assert found.item() == pytest.approx(nn.functional.cross_entropy(student(images), targets).item(), rel=1e-5)


def test_finetuning_moves_towards_the_teacher_and_leaves_it_alone(data: Data) -> None:
    teacher = toy_network(1)
    train_dense(teacher, data, plan=TrainPlan(epochs=20, batch_size=16))
    reference = predict(teacher, data)
    state = {key: value.clone() for key, value in teacher.state_dict().items()}
    student = toy_network(2)
    before = evaluate(student, data, reference=reference).kl
    log = finetune(student, teacher, data, plan=replace(FINETUNE, epochs=10, lr=0.05, batch_size=16))
    after = evaluate(student, data, reference=reference).kl
    assert before is not None
    assert after is not None
    assert after < before / 2
    assert log.image_passes == 960
    assert all(torch.equal(value, state[key]) for key, value in teacher.state_dict().items())


def test_dense_training_reports_the_score_of_every_epoch(data: Data) -> None:
    model = toy_network()
    log = train_dense(model, data, plan=TrainPlan(epochs=3, batch_size=16))
    assert len(log.history) == 3
    assert log.history[-1]["val_score"] == evaluate(model, data).score


@pytest.mark.parametrize("augment", [Augment(), Augment(flip=True, crop=1)])
def test_recalibrated_statistics_are_the_closed_form_on_augmented_images(data: Data, augment: Augment) -> None:
    data = replace(data, augment=augment)
    norm = nn.BatchNorm2d(3, momentum=0.3)
    recalibrate_bn(nn.Sequential(norm), data, images=96, batch_size=24, seed=5)
    chance = generator(5, "recalibrate")
    order = torch.randperm(96, generator=chance)
    batches = [data.batch("train", indices, chance)[0].double() for indices in torch.split(order, 24)]
    mean = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    variance = torch.stack([batch.var((0, 2, 3), unbiased=True) for batch in batches]).mean(0)
    assert torch.allclose(norm.running_mean.double(), mean, atol=1e-5)
    assert torch.allclose(norm.running_var.double(), variance, rtol=1e-4)
    assert int(norm.num_batches_tracked) == 4
    assert norm.momentum == 0.3


def test_recalibration_touches_statistics_only(data: Data) -> None:
    model = toy_network()
    model[5].train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert recalibrate_bn(model, data, images=40, batch_size=16) is model
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert int(model[1].num_batches_tracked) == 2  # 40 images are two whole batches
    assert all(parameter.grad is None for parameter in model.parameters())


def test_recalibration_sees_what_the_network_computes_without_dropout(data: Data) -> None:
    """A dropout in front of a batch norm stays off, in a model that was left in training mode too."""

    def made(dropout: nn.Module) -> nn.Sequential:
        return nn.Sequential(dropout, nn.BatchNorm2d(3)).train()

    found, expected = made(nn.Dropout(0.5)), made(nn.Identity())
    for model in (found, expected):
        recalibrate_bn(model, data, images=96, batch_size=24)
        assert all(module.training for module in model.modules())
    assert torch.equal(found[1].running_mean, expected[1].running_mean)
    assert torch.equal(found[1].running_var, expected[1].running_var)


def test_recalibration_repairs_shifted_statistics(data: Data) -> None:
    model = toy_network()
    train_dense(model, data, plan=TrainPlan(epochs=20, batch_size=16))
    good = evaluate(model, data).score
    model[1].running_mean += 5 * model[1].running_var.sqrt()
    bad = evaluate(model, data).score
    repaired = evaluate(recalibrate_bn(model, data), data).score
    assert bad < good - 0.2
    assert repaired > good - 0.05


def test_a_network_without_batch_norm_is_left_alone(data: Data) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 4))
    before = model[1].weight.clone()
    assert recalibrate_bn(model, data) is model
    assert torch.equal(model[1].weight, before)
