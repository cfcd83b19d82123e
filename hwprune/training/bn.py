"""Batch-norm statistics of a network whose weights were cut or changed."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hwprune.training._random import generator
from hwprune.training.data import Data
from hwprune.training.tasks import eval_mode


@torch.no_grad()
def recalibrate_bn(
    model: nn.Module, data: Data, images: int = 1024, *, batch_size: int = 128, seed: int = 0
) -> nn.Module:
    """Replace the running statistics of every batch norm, in place, by averages over training images; return the model.

    Cumulative average: the mean over equal batches of the batch mean and of the unbiased batch variance. Only batch
    norms are in training mode (dropout stays off). `images` is rounded to whole batches, at least one. Images are
    augmented as in training: weights trained on them expect their statistics.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return model
    batch_size = min(batch_size, len(data.train))
    chance = generator(seed, "recalibrate")
    order = torch.randperm(len(data.train), generator=chance)
    batches = max(1, min(images, len(data.train)) // batch_size)
    momenta = [norm.momentum for norm in norms]
    device = next(model.parameters()).device
    with eval_mode(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.training = True
        try:
            for indices in torch.split(order[: batches * batch_size], batch_size):
                model(data.batch("train", indices, chance)[0].to(device))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    return model
