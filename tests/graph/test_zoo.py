"""Networks of torchvision and timm with random weights: exact after a random cut of all groups. Minutes."""

from __future__ import annotations

import random

import pytest
import torch

from hwprune.graph import cut, mask, trace
from hwprune.graph.check import lively

TORCHVISION = ("resnet18", "mobilenet_v2", "squeezenet1_1", "googlenet", "shufflenet_v2_x0_5", "mnasnet0_5", "vit_b_32")
TIMM = {
    "resnet50": 37,
    "mobilenetv3_large_100": 30,
    "efficientnet_b0": 40,
    "densenet121": 120,
    "ghostnet_100": 31,
    "regnety_002": 44,
    "res2net50_26w_4s": 45,
    "skresnet18": 20,
    "dla34": 25,
    "convnext_atto": 12,
    "vit_tiny_patch16_224": 24,
    "mobilevit_xxs": 40,
    "efficientformer_l1": 21,
    "poolformer_s12": 12,
    "swin_tiny_patch4_window7_224": 24,
}
NO_VISION = "needs hwprune[vision]; the CPU builds that fit a CPU build of torch are not on the package index"
FIXED_SIZE = ("vit", "swin", "efficientformer")


@torch.no_grad()
def assert_exact(model: torch.nn.Module, size: int) -> int:
    """Cut about half of every group and compare with the mask; returns the number of removable groups."""
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    graph = trace(model, x)
    # Untrained networks die out; the comparison needs an output that depends on every layer.
    model = lively(model.eval(), (x,))
    rng = random.Random(1)
    keep = {g.name: sorted(rng.sample(range(g.units), max(1, g.units // 2))) for g in graph.removable}
    small, expected = cut(model, graph, keep), mask(model, graph, keep)(x)
    assert float((small(x) - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    assert sum(p.numel() for p in small.parameters()) == graph.params(graph.widths_of(keep))
    return len(graph.removable)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    models = pytest.importorskip("torchvision.models", reason=NO_VISION)
    options = {"init_weights": True} if name == "googlenet" else {}
    model = models.get_model(name, weights=None, **options)
    assert assert_exact(model, 224 if name == "vit_b_32" else 96) >= 12


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm", reason=NO_VISION)
    model = timm.create_model(name, pretrained=False)
    size = 224 if any(part in name for part in FIXED_SIZE) else 96
    assert assert_exact(model, size) == TIMM[name]
