"""`hwprune inspect`: which channels can be cut, which go together, what stays whole, and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from cli_fakes import Done, FakeApi

from hwprune import api
from hwprune.graph import trace
from hwprune.models import load_model

Hw = Callable[..., Done]
SORTED_NET = """
import torch
from torch import nn

class Sorted(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3), nn.Conv2d(12, 4, 1)

    def forward(self, x):
        x = torch.relu(self.body(torch.relu(self.stem(x))))
        return self.head(torch.sort(x, dim=1)[0]).mean((2, 3))

def build():
    return Sorted()
"""


def test_groups_of_the_default_network(hw: Hw, workplace: Path) -> None:
    done = hw("inspect", "--protect", "layer1.0")
    assert done.code == 0
    assert done.err == ""
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert "groups 7 of 10 can be cut, 736 of 874 units" in lines
    assert "conv1 64 conv1, layer1.0.conv2, 1 more stays whole: protected on request" in lines
    assert "layer3.1.conv1 128 layer3.1.conv1 --depth: may go with its branch" in lines
    assert "channels that stay whole" not in done.out, "an output and what was asked for go without saying"


def test_the_document_is_the_graph(hw: Hw, workplace: Path) -> None:
    document = hw("inspect", "resnet20", "--input", "1x3x32x32", "--json").json
    graph = trace(load_model("resnet20"), torch.zeros(1, 3, 32, 32))
    assert document["input_shapes"] == [[1, 3, 32, 32]]
    assert (document["params"], document["macs"]) == (graph.params({}), graph.macs({}))
    assert [item["name"] for item in document["groups"]] == [group.name for group in graph.groups]
    assert [item["producers"] for item in document["groups"]] == [list(group.producers) for group in graph.groups]
    assert [item["removable"] for item in document["groups"]] == [group.removable for group in graph.groups]


def test_what_stays_whole_is_told_with_its_place(hw: Hw, workplace: Path) -> None:
    (workplace / "mine.py").write_text(SORTED_NET)
    done = hw("inspect", "mine.py:build", "--input", "1x3x8x8")
    assert done.code == 0
    (line,) = (line for line in done.out.splitlines() if line.startswith("  12 channels, sort"))
    assert "mine.py:12" in line
    (body,) = (line for line in done.out.splitlines() if line.startswith("body"))
    assert "stays whole: " in body


def test_names_are_those_of_other_verbs(hw: Hw, api: FakeApi) -> None:
    api.answers["inspect"] = lambda *args, **kwargs: trace(load_model("resnet20"), torch.zeros(1, 3, 32, 32))
    assert hw("inspect", "resnet20", "--data", "d", "--protect", "conv1").code == 0
    assert (api.calls[0][1], api.last["data"], api.last["protect"]) == (("resnet20", None), "d", ["conv1"])


def test_in_python() -> None:
    graph = api.inspect("digits_resnet", protect=["layer3"])
    assert [group.name for group in graph.removable][-1] == "layer2.1.conv1"
