"""From a user's words to a network, and everything that can be wrong with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hwprune.core.errors import DeviceError, UsageError
from hwprune.models import _load, default_input_shape, load_model, load_weights, save_weights
from hwprune.testing.networks import build

FUNCTIONS = """
from torch import nn

def make(width=4, classes=10, input_shape=(3, 8, 8)):
    return nn.Sequential(nn.Conv2d(input_shape[0], width, 1), nn.Flatten(), nn.LazyLinear(classes))

def plain():
    return nn.Linear(2, 2)

def wrong():
    return 3
"""


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(FUNCTIONS)
    return path


def test_a_function_gets_options_classes_and_input_shape(functions: Path) -> None:
    model = load_model(f"{functions}:make?width=6&classes=7", input_shape=(1, 8, 8))
    assert model.get_submodule("0").weight.shape == (6, 1, 1, 1)
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 7)
    assert isinstance(load_model(f"{functions}:plain", classes=4, input_shape=(1, 8, 8)), nn.Linear)
    assert default_input_shape(f"{functions}:make") is None


def test_a_function_must_give_a_module(functions: Path) -> None:
    with pytest.raises(UsageError, match=r"gave int, not a torch\.nn\.Module"):
        load_model(f"{functions}:wrong")
    with pytest.raises(UsageError, match=r"has no parameter 'widht'\. Did you mean 'width'"):
        load_model(f"{functions}:make?widht=3")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet21", r"unknown model 'resnet21'. Did you mean 'resnet2?0?"),
        ("torchvison:resnet18", "unknown model 'torchvison'. Did you mean 'torchvision'"),
        ("resnet20?widht=2", "unknown key 'widht'. Did you mean 'width'"),
        ("resnet20?width=wide", "width is 'wide', not of type float"),
        ("resnet20?width=0", "width multiplier must lie between 0 and 64, not 0"),
        ("resnet20?option=C", "option is 'C', not one of A, B"),
        ("resnet20?classes=none", "classes=none is not a number"),
        ("vgg?depth=12", "no variant with depth=12"),
    ],
)
def test_wrong_specifications_are_named(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_model(spec)


def test_classes_may_not_contradict_the_data() -> None:
    assert load_model("digits_resnet?classes=10", classes=10).get_submodule("linear").out_features == 10
    with pytest.raises(UsageError, match="asks for 20 classes, but the data has 10"):
        load_model("resnet20?classes=20", classes=10)


def test_libraries_give_models() -> None:
    pytest.importorskip("torchvision")
    model = load_model("torchvision:resnet18?classes=4")
    assert model.get_submodule("fc").out_features == 4
    assert default_input_shape("torchvision:resnet18") == (3, 224, 224)
    with pytest.raises(UsageError, match=r"torchvision has no model 'resnet19'\. Did you mean 'resnet1"):
        load_model("torchvision:resnet19")
    with pytest.raises(UsageError, match="unknown option 'width' of torchvision:resnet18"):
        load_model("torchvision:resnet18?width=2")


def test_backbones_of_torchvision_are_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fcn(*, weights: object = "yes", weights_backbone: object = "yes", num_classes: int = 21) -> nn.Module:
        assert weights is None
        assert weights_backbone is None
        return nn.Conv2d(3, num_classes, 1)

    library = SimpleNamespace(
        list_models=lambda: ["fcn"],
        get_model_builder=lambda name: fcn,
        get_model=lambda name, **given: fcn(**given),
    )
    monkeypatch.setattr(_load, "_import_library", lambda name: library)
    assert load_model("torchvision:fcn", classes=5).get_parameter("weight").shape[0] == 5


def test_timm_gives_models() -> None:
    pytest.importorskip("timm")
    model = load_model("timm:resnet18", classes=3, input_shape=(1, 64, 64))
    assert model.get_submodule("conv1").in_channels == 1
    assert default_input_shape("timm:resnet18") == (3, 224, 224)


def test_a_missing_library_is_the_environments_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(DeviceError, match="timm is not installed") as caught:
        load_model("timm:resnet18")
    assert caught.value.hint == "pip install timm"


def test_weights_that_do_not_fit_leave_the_model_alone(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    state = {key: value for key, value in load_model("resnet20?width=2").state_dict().items() if key != "conv1.weight"}
    save_file({**state, "extra": torch.zeros(1)}, path)
    model = load_model("resnet20")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        load_weights(model, path)
    assert "bn1.weight: file (32,), model (16,)" in caught.value.message
    assert "more" in caught.value.message
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_missing_and_extra_tensors_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    state = dict(load_model("resnet20").state_dict())
    del state["linear.bias"]
    save_file({**state, "extra": torch.zeros(1)}, path)
    with pytest.raises(UsageError, match=r"(?s)in 2 tensors.*linear.bias: not in the file.*extra: not in the model"):
        load_weights(load_model("resnet20"), path)


def test_unreadable_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(UsageError, match=r"bad\.safetensors is not a safetensors file"):
        load_weights(load_model("resnet20"), tmp_path / "bad.safetensors")
    with pytest.raises(UsageError, match=r"cannot read .*absent\.safetensors"):
        load_weights(load_model("resnet20"), tmp_path / "absent.safetensors")


def test_weights_survive_a_round_trip(tmp_path: Path) -> None:
    source = load_model("digits_resnet", seed=1)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    copy = load_weights(load_model("digits_resnet", seed=2), tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), copy.parameters(), strict=True))


@pytest.mark.parametrize("family", ["registered", "tied"])
def test_a_tensor_under_two_names_survives_a_round_trip(tmp_path: Path, family: str) -> None:
    source, (images,) = build(family, seed=1)
    save_weights(source, tmp_path / "w.safetensors")
    assert load_file(tmp_path / "w.safetensors").keys() == source.state_dict().keys()
    other, _ = build(family, seed=2)
    with torch.no_grad():
        assert not torch.equal(other(images), source(images))
        assert torch.equal(load_weights(other, tmp_path / "w.safetensors")(images), source(images))


def test_listing_names_imports_no_network() -> None:
    code = "import sys, hwprune.models as m; m.model_names(); print('hwprune.models.resnet20' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_as_that(tmp_path: Path, value: float) -> None:
    model = load_model("resnet20")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    name = next(iter(state))
    state[name].view(-1)[3] = value
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(UsageError, match=f"1 of the tensors in .* hold NaN or infinite values, {name} among them"):
        load_weights(model, tmp_path / "broken.safetensors")
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet20?classes=²", "classes=² is not a number of classes"),
        ("dncnn?depth=2", "dncnn has no variant with depth=2"),
        ("efficientnet_lite0?dropout=2", "a dropout of 2.0 is not a share"),
    ],
)
def test_options_out_of_range_are_named(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_model(spec)
