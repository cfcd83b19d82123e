"""Pooling, resizing, reflection padding, windows: spatial positions are mixed, channels are not."""

from __future__ import annotations

from hwprune.graph.call import Call, rule

_POOLS = tuple(
    f"{prefix}{kind}_pool{n}d{suffix}"
    for prefix in ("", "adaptive_", "_adaptive_")
    for kind in ("max", "avg")
    for n in (1, 2, 3)
    for suffix in ("", "_with_indices")
)
_RESIZES = tuple(
    f"{prefix}upsample_{mode}"
    for prefix in ("", "_")
    for mode in (
        "nearest1d", "nearest2d", "nearest3d", "nearest_exact1d", "nearest_exact2d", "nearest_exact3d", "linear1d",
        "bilinear2d", "trilinear3d", "bicubic2d", "bilinear2d_aa", "bicubic2d_aa",
    )
)  # fmt: skip
_PADS = tuple(f"{mode}_pad{n}d" for mode in ("reflection", "replication") for n in (1, 2, 3))


@rule(*_POOLS)
def pool(call: Call) -> None:
    """`(n, c, *size)`, or without n: all but the spatial dims are kept."""
    _spatial(call, "pool")


@rule(*_RESIZES, "grid_sampler_2d", "grid_sampler")
def resize(call: Call) -> None:
    """`(n, c, *size)` to another size."""
    _spatial(call, "resize")


@rule(*_PADS)
def pad(call: Call) -> None:
    """`(n, c, *size)` with a border."""
    _spatial(call, "reshape")


@rule("tril", "triu")
def triangle(call: Call) -> None:
    """The last two dims are zero on one side of the diagonal."""
    x = call.tensor("self")
    call.put(call.keep_only(x, set(range(x.ndim - 2))))
    call.note_plain("other", x)


@rule("unfold")
def windows(call: Call) -> None:
    """Windows along `dimension`, laid out along a new last dim."""
    x = call.tensor("self")
    call.put(call.keep_only(x, set(range(x.ndim)) - {call.dim("dimension", x)}))


def _spatial(call: Call, kind: str) -> None:
    x = call.inputs[0]
    spatial = int(next((char for char in reversed(call.name) if char.isdigit()), "2"))
    layout = call.keep_only(x, set(range(x.ndim - spatial)))
    for other in call.inputs[1:]:
        call.pin_factors(call.layout(other), "it samples positions by them")
    for number in range(len(call.outputs)):
        call.put(layout, output=number)
    call.note_plain(kind, x)
