"""Operators whose channel counts are linear functions of the group widths.

One fused multiply-add counts as one MAC. Nothing here needs the model: a latency table carries these templates,
so a latency model can be fitted on a machine that never saw the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ChannelCount:
    """`constant + sum(coefficient * widths[group])`: a channel count as a function of the widths.

    A concat adds terms, a flatten multiplies the coefficients by the spatial size, a layer that nothing can cut
    has no terms.
    """

    constant: int
    terms: tuple[tuple[str, int], ...] = ()

    def at(self, widths: Mapping[str, int]) -> int:
        """The count in the sub-network with these widths."""
        return self.constant + sum(coefficient * widths[group] for group, coefficient in self.terms)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ChannelCount:
        """The count that `asdict` wrote."""
        return cls(int(document["constant"]), tuple((str(g), int(c)) for g, c in document["terms"]))


@dataclass(frozen=True, order=True)
class OpKey:
    """One operator with concrete shapes. `kernel`, `stride` and sizes are (height, width); linear has 1x1."""

    kind: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    groups: int
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    batch: int = 1
    fused: str = ""

    @property
    def macs(self) -> int:
        """Multiply-accumulates for the whole batch; 0 for operators without weights."""
        if self.kind not in ("conv", "conv_transpose", "linear"):
            return 0
        height, width = self.in_size if self.kind == "conv_transpose" else self.out_size
        taps = self.kernel[0] * self.kernel[1]
        return self.batch * height * width * taps * self.in_channels * self.out_channels // max(1, self.groups)


@dataclass(frozen=True)
class OpTemplate:
    """An operator of the traced network for any widths.

    `kind`: conv, conv_transpose, linear, matmul, norm, activation, add, mul, concat, pool, resize, reshape, other.
    `name`: the dotted module path that ran it (the ONNX node bears it too); `fused`: the activation that follows.
    """

    name: str
    kind: str
    in_channels: ChannelCount
    out_channels: ChannelCount
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    groups: ChannelCount = ChannelCount(1)
    in_size: tuple[int, int] = (1, 1)
    out_size: tuple[int, int] = (1, 1)
    batch: int = 1
    fused: str = ""

    def at(self, widths: Mapping[str, int]) -> OpKey:
        """The operator with concrete shapes in the sub-network with these widths."""
        return OpKey(
            self.kind,
            self.in_channels.at(widths),
            self.out_channels.at(widths),
            self.kernel,
            self.stride,
            self.groups.at(widths),
            self.in_size,
            self.out_size,
            self.batch,
            self.fused,
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON document from which `from_json` makes an equal template."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> OpTemplate:
        """The template that `to_json` wrote."""
        fields = dict(document)
        for name in ("in_channels", "out_channels", "groups"):
            fields[name] = ChannelCount.from_json(fields[name])
        for name in ("kernel", "stride", "in_size", "out_size"):
            fields[name] = (int(fields[name][0]), int(fields[name][1]))
        return cls(**fields)


@dataclass(frozen=True)
class ParameterTemplate:
    """A parameter's shape for any widths: one `ChannelCount` a dimension."""

    name: str
    shape: tuple[ChannelCount, ...]

    def count(self, widths: Mapping[str, int]) -> int:
        """The number of scalars in the sub-network with these widths."""
        total = 1
        for dimension in self.shape:
            total *= dimension.at(widths)
        return total
