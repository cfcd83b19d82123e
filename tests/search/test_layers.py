"""Layer times at the end of a run: in turns, and where the runtime has none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from hwprune.core.errors import DeviceError
from hwprune.core.events import Event, Note
from hwprune.core.measurement import LayerTime, Target
from hwprune.devices import AbstractBoard
from hwprune.methods._base import Answer
from hwprune.search import layers as layers_module
from hwprune.search.layers import TURNS, layer_profile, layers_in_turn
from hwprune.search.workshop import Workshop


def shop_of(layers: object, heard: list[Event]) -> Workshop:
    """As much of a workshop as asking for layer times needs."""
    return cast(
        Workshop,
        SimpleNamespace(
            board=SimpleNamespace(layers=layers, target=Target(runtime="litert")),
            template=SimpleNamespace(dense=b"dense"),
            folder=SimpleNamespace(emit=heard.append),
        ),
    )


def test_a_runtime_without_layer_times_is_named() -> None:
    heard: list[Event] = []

    def layers(model: bytes, *, runs: int) -> tuple[LayerTime, ...]:
        return ()

    assert layer_profile(shop_of(layers, heard), b"small", cast(Answer, None)) is None
    assert [event.text for event in heard if isinstance(event, Note)] == ["no layer times: litert gives none"]


def test_a_device_that_fails_at_it_is_quoted() -> None:
    heard: list[Event] = []

    def layers(model: bytes, *, runs: int) -> tuple[LayerTime, ...]:
        raise DeviceError("the profiler is busy")

    assert layer_profile(shop_of(layers, heard), b"small", cast(Answer, None)) is None
    assert [event.text for event in heard if isinstance(event, Note)] == ["no layer times: the profiler is busy"]


class SlowingBoard:
    """A device that takes longer with every session: the layers take `base` ms times one more tenth each."""

    def __init__(self, base: dict[bytes, tuple[float, ...]]) -> None:
        self.base = base
        self.asked: list[bytes] = []

    def layers(self, model: bytes, *, runs: int) -> tuple[LayerTime, ...]:
        self.asked.append(model)
        pace = 1 + len(self.asked) / 10
        return tuple(LayerTime(f"layer{place}", "Conv", ms * pace) for place, ms in enumerate(self.base[model]))


def test_a_machine_that_becomes_slower_favours_neither_network() -> None:
    board = SlowingBoard({b"dense": (1.0, 2.0), b"pruned": (1.0, 1.0)})
    found = layers_in_turn(cast(AbstractBoard, board), {"dense": b"dense", "pruned": b"pruned"})
    assert board.asked.count(b"dense") == board.asked.count(b"pruned") == TURNS
    dense, pruned = ([layer.latency_ms for layer in found[name]] for name in ("dense", "pruned"))
    assert pruned[0] == pytest.approx(dense[0]), "not pruned: as long as before"
    assert pruned[1] == pytest.approx(dense[1] / 2)


def test_no_turn_begins_after_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers_module, "LIMIT_S", -1.0)
    board = SlowingBoard({b"dense": (1.0,), b"pruned": (1.0,)})
    found = layers_in_turn(cast(AbstractBoard, board), {"dense": b"dense", "pruned": b"pruned"})
    assert board.asked == [b"dense", b"pruned"]
    assert [layer.latency_ms for layer in found["pruned"]] == [pytest.approx(1.2)]


def test_sessions_with_other_layers_than_the_first_do_not_count() -> None:
    fused = LayerTime("fused", "Conv", 9.0)
    answers = iter([(LayerTime("a", "Conv", 1.0),), (fused,), *[(LayerTime("a", "Conv", 3.0),)] * TURNS])
    board = SimpleNamespace(layers=lambda model, *, runs: next(answers))
    (layer,) = layers_in_turn(cast(AbstractBoard, board), {"net": b""})["net"]
    assert (layer.name, layer.latency_ms) == ("a", 3.0)
