"""Layer times at the end of a run, where the runtime has some and where it has none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from hwprune.core.errors import DeviceError
from hwprune.core.events import Event, Note
from hwprune.core.measurement import LayerTime, Target
from hwprune.methods._base import Answer
from hwprune.search.finish import layer_profile
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
