"""The reference networks: sizes known from their papers, shapes, padding, and real weights on real images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hwprune.models import default_input_shape, load_model, load_weights, model_names
from hwprune.models._layers import SameConv2d, scaled

SHARED = Path(__file__).parents[3] / "shared" / "data"


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        ("resnet20", 269_722),  # 0.27 M, He et al. 2016, table 6
        ("resnet32", 464_154),  # 0.46 M
        ("resnet56", 853_018),  # 0.85 M
        ("mobilenetv2", 3_504_872),  # 3.5 M, torchvision's mobilenet_v2
        ("efficientnet_lite0", 4_652_008),  # 4.65 M, the file of the PyPI package
        ("dncnn", 64 * 9 * 2 + 15 * (64 * 64 * 9 + 128)),
    ],
)
def test_parameter_counts_are_the_published_ones(spec: str, count: int) -> None:
    assert _parameters(load_model(spec)) == count


def _resnet_count(channels: tuple[int, int, int], blocks: int, classes: int) -> int:
    total = 3 * channels[0] * 9 + 2 * channels[0]
    before = channels[0]
    for width in channels:
        total += before * width * 9 + (2 * blocks - 1) * width * width * 9 + 2 * blocks * 2 * width
        before = width
    return total + channels[2] * classes + classes


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_resnet_width_follows_the_closed_form(width: float) -> None:
    channels = (int(16 * width), int(32 * width), int(64 * width))
    model = load_model(f"resnet20?width={width}&classes=7")
    assert _parameters(model) == _resnet_count(channels, 3, 7)


@pytest.mark.parametrize("name", model_names())
def test_forward_shape(name: str) -> None:
    shape = default_input_shape(name)
    assert shape is not None
    side = min(shape[1], 64)
    model = load_model(name, classes=5).eval()
    outputs = model(torch.randn(2, shape[0], side, side))
    assert outputs.shape == ((2, *shape[:1], side, side) if name == "dncnn" else (2, 5))
    assert torch.isfinite(outputs).all()


@pytest.mark.parametrize("name", model_names())
def test_weights_depend_on_the_seed_alone(name: str) -> None:
    state = torch.get_rng_state()
    first, again, other = load_model(name, seed=3), load_model(name, seed=3), load_model(name, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    weights = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_small_input_keeps_the_resolution() -> None:
    images = torch.randn(1, 3, 32, 32)
    plain, small = (load_model(f"mobilenetv2?width=0.5&small_input={flag}").eval() for flag in ("false", "true"))
    features = [model.get_submodule("features")(images).shape[2:] for model in (plain, small)]
    assert features == [(1, 1), (4, 4)]


def test_mobilenetv2_equals_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision.models")
    ours, theirs = load_model("mobilenetv2").eval(), torchvision.mobilenet_v2(weights=None).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))


def _same_reference(images: Tensor, weight: Tensor, stride: int) -> Tensor:
    """TensorFlow's definition: output pixel (i, j) looks at `i * stride - before + k`, outside is zero."""
    size, kernel = images.shape[-1], weight.shape[-1]
    out = -(-size // stride)
    before = max(0, (out - 1) * stride + kernel - size) // 2
    result = torch.zeros(1, weight.shape[0], out, out)
    for i in range(out):
        for j in range(out):
            for k in range(kernel):
                for m in range(kernel):
                    y, x = i * stride - before + k, j * stride - before + m
                    if 0 <= y < size and 0 <= x < size:
                        result[0, :, i, j] += weight[:, :, k, m] @ images[0, :, y, x]
    return result


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(8, 3, 2), (7, 3, 2), (8, 5, 2), (5, 5, 1), (6, 1, 1), (9, 2, 1)]
)
def test_same_padding_is_tensorflows(size: int, kernel: int, stride: int) -> None:
    conv = SameConv2d(2, 3, kernel, stride, bias=False)
    images = torch.randn(1, 2, size, size)
    assert torch.allclose(conv(images), _same_reference(images, conv.weight, stride), atol=1e-5)


def test_scaled_never_loses_more_than_a_tenth() -> None:
    for channels in (16, 24, 32, 96, 320):
        assert scaled(channels, 1.0) == channels
        for width in (0.25, 0.35, 0.5, 0.75, 1.4):
            assert scaled(channels, width) % 8 == 0
            assert scaled(channels, width) >= 0.9 * channels * width


def test_option_a_shortcut_pads_and_strides() -> None:
    block = load_model("resnet20").get_submodule("layer2.0.shortcut")
    images = torch.randn(1, 16, 6, 6)
    out = block(images)
    assert out.shape == (1, 32, 3, 3)
    assert torch.equal(out[:, 8:24], images[:, :, ::2, ::2])
    assert float(out[:, :8].abs().sum() + out[:, 24:].abs().sum()) == 0
    assert not list(block.parameters())


def test_option_b_shortcut_has_a_convolution() -> None:
    names = load_model("resnet20?option=B").state_dict()
    assert names["layer2.0.shortcut.0.weight"].shape == (32, 16, 1, 1)
    assert "layer2.0.shortcut.0.weight" not in load_model("resnet20").state_dict()


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize(
    ("spec", "file"),
    [
        ("resnet20", "cifar10_resnet20"),
        ("resnet32", "cifar10_resnet32"),
        ("resnet56", "cifar10_resnet56"),
        ("dncnn", "dncnn_s25"),
        ("mobilenetv2?padding=same", "imagenet_mobilenet_v2_tf_same"),
    ],
)
def test_published_weights_fit(spec: str, file: str) -> None:
    fresh, model = load_model(spec), load_model(spec)
    load_weights(model, SHARED / "weights" / f"{file}.safetensors")
    assert not torch.equal(next(fresh.parameters()), next(model.parameters()))
