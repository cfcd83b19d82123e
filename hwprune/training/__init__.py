"""Data, tasks, and the one training loop that dense training, finetuning and the search methods share."""

from hwprune.training._plan import TrainLog, TrainPlan
from hwprune.training._random import generator, mix
from hwprune.training._trainee import AbstractTrainee, ModelTrainee, sgd, trainable
from hwprune.training.bn import recalibrate_bn
from hwprune.training.data import ArraySet, Augment, Data, Split
from hwprune.training.loop import train
from hwprune.training.recipes import FINETUNE, finetune, train_dense
from hwprune.training.sources import DataOptions, load_data
from hwprune.training.tasks import Classification, Denoising, Evaluation, Task, evaluate, predict, task_for

__all__ = [
    "FINETUNE",
    "AbstractTrainee",
    "ArraySet",
    "Augment",
    "Classification",
    "Data",
    "DataOptions",
    "Denoising",
    "Evaluation",
    "ModelTrainee",
    "Split",
    "Task",
    "TrainLog",
    "TrainPlan",
    "evaluate",
    "finetune",
    "generator",
    "load_data",
    "mix",
    "predict",
    "recalibrate_bn",
    "sgd",
    "task_for",
    "train",
    "train_dense",
    "trainable",
]
