"""Whole runs of networks whose tensors have two names: one module registered twice, and tied weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from hwprune import api
from hwprune.testing.network_blocks import Registered, Tied
from hwprune.testing.toys import toy_data

CLASSES = {"registered": Registered, "tied": Tied}
NAMES = {"registered": ("stem.0", "features.0.0"), "tied": ("first.conv1", "second.conv1")}


@pytest.mark.parametrize(("kind", "method"), [("registered", "dhp"), ("tied", "wgates")])
def test_a_run_ends_with_a_network_that_agrees_with_its_files(tmp_path: Path, kind: str, method: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = CLASSES[kind](width=32)
    data = toy_data(classes=5)
    given: dict[str, Any] = {"latency": "80%", "device": "simulated", "samples": 24, "tile": 16}
    epochs = {"dense_epochs": 0.5, "epochs": 1.0, "finetune_epochs": 0.5}
    folders = {"run_dir": tmp_path / "run", "tables": tmp_path / "tables"}
    run = api.search(network, data, method=method, **given, **epochs, **folders)
    assert run.verdict == "pass"

    states = [load_file(path) for path in run.folder.rglob("*.safetensors") if path.stem in ("dense", "best", "state")]
    assert len(states) == 3
    first, second = NAMES[kind]
    assert all(torch.equal(state[f"{first}.weight"], state[f"{second}.weight"]) for state in states)
    small = run.model
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in network.parameters())
    session = onnxruntime.InferenceSession(run.folder / "model.onnx", providers=["CPUExecutionProvider"])
    (place,) = session.get_inputs()
    images = torch.randn(place.shape, generator=torch.Generator().manual_seed(0))
    (exported,) = session.run(None, {place.name: images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(exported, small(images).numpy(), rtol=1e-4, atol=1e-4)
