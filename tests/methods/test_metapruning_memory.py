"""What the guard on PruningNet's size promises is what training it takes, checkpoints included."""

from __future__ import annotations

import multiprocessing
import resource
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from hwprune.methods import Problem
from hwprune.methods._joint import train_search
from hwprune.methods._metapruning_genes import GeneSpace
from hwprune.methods._metapruning_net import PruningNet
from hwprune.methods._metapruning_training import _COPIES, StructureTraining
from hwprune.methods._saliency import weight_norm
from hwprune.testing.methods import tiny_problem
from hwprune.training._checkpoint import Checkpoint, save_checkpoint

_BYTES = 48e6


def most_memory() -> int:
    """Bytes, the most this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def trained(problem: Problem, hidden: int) -> int:
    """Train a PruningNet for two steps with a checkpoint after each; the bytes of its parameters."""
    scores = weight_norm(problem.model, problem.graph, problem.space, "l1")
    net = PruningNet(problem.model, problem.graph, problem.space, scores, hidden=hidden)
    genes = GeneSpace.within(problem.space, problem.latency, problem.target_ms, 0.9)
    train_search(problem, StructureTraining(problem, net, genes, near_budget=0.5, distill_alpha=0.7))
    return size(net)


def size(net: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in net.parameters())


def _train_and_tell(folder: Path, told: Connection) -> None:
    problem = tiny_problem("chain", tile=1)
    plan = replace(problem.plan, epochs=0.34, checkpoint_s=0.0, weight_decay=1e-4)
    problem = replace(problem, plan=plan)
    trained(replace(problem, checkpoint=folder / "small"), 1)  # loads what is loaded at the first use
    before = most_memory()
    whole = trained(replace(problem, checkpoint=folder / "large"), int(_BYTES / size(problem.model)))
    told.send((most_memory() - before) / whole)


def test_training_with_checkpoints_takes_no_more_than_the_guard_counts(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_train_and_tell, args=(tmp_path, there))
    child.start()
    there.close()
    copies = here.recv()
    child.join()
    # The 12 MB of a heap that is not given back at once.
    assert 3 < copies < _COPIES + 0.25
    assert len(list((tmp_path / "large").glob("*.safetensors"))) == 2


def test_the_library_reads_a_checkpoint(tmp_path: Path) -> None:
    """Every kind of tensor in one file, with elements of 1 to 8 bytes in an order that must be changed."""
    kinds = (torch.bool, torch.int8, torch.uint8, torch.int16, torch.float16, torch.bfloat16, torch.int32)
    wide = (torch.float32, torch.int64, torch.float64)
    tensors = {f"{place} é": torch.arange(3 + place).to(kind) for place, kind in enumerate((*kinds, *wide))}
    tensors |= {"scalar": torch.tensor(7), "empty": torch.zeros(0, 3), "strided": torch.arange(12.0).reshape(3, 4).T}
    save_checkpoint(tmp_path, 1, Checkpoint(tensors, {"text": 'é "quoted"'}))
    found = load_file(tmp_path / "step-000000001.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
