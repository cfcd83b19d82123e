"""MACs and parameters of a whole batch of widths at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from hwprune.core.errors import UsageError
from hwprune.core.ops import ChannelCount, OpTemplate, ParameterTemplate

Ints = npt.NDArray[np.int64]


def counts(channels: Sequence[ChannelCount], names: Sequence[str], rest: Mapping[str, int], values: Ints) -> Ints:
    """The channel counts `(batch, counts)` at `values (batch, groups)`; groups in `rest` have the width given there."""
    if values.ndim != 2 or values.shape[1] != len(names):
        raise UsageError(f"widths of shape {values.shape} do not fit {len(names)} groups", hint="give (batch, groups)")
    column = {name: number for number, name in enumerate(names)}
    constant = np.zeros(len(channels), np.int64)
    matrix = np.zeros((len(names), len(channels)), np.int64)
    for number, count in enumerate(channels):
        constant[number] = count.constant
        for group, coefficient in count.terms:
            if group in column:
                matrix[column[group], number] += coefficient
            else:
                constant[number] += coefficient * rest[group]
    return values.astype(np.int64) @ matrix + constant


def macs(templates: Sequence[OpTemplate], names: Sequence[str], rest: Mapping[str, int], values: Ints) -> Ints:
    """Multiply-accumulates `(batch,)` of convolutions and linear layers."""
    used = [template for template in templates if template.kind in ("conv", "conv_transpose", "linear")]
    inputs = counts([template.in_channels for template in used], names, rest, values)
    outputs = counts([template.out_channels for template in used], names, rest, values)
    groups = counts([template.groups for template in used], names, rest, values)
    factor = np.array([_positions(template) for template in used], np.int64)
    result: Ints = (factor * inputs * outputs // np.maximum(groups, 1)).sum(axis=1)
    return result


def _positions(template: OpTemplate) -> int:
    height, width = template.in_size if template.kind == "conv_transpose" else template.out_size
    return template.batch * height * width * template.kernel[0] * template.kernel[1]


def params(templates: Sequence[ParameterTemplate], names: Sequence[str], rest: Mapping[str, int], values: Ints) -> Ints:
    """Parameter counts `(batch,)`."""
    total = np.zeros(len(values), np.int64)
    for template in templates:
        total += counts(template.shape, names, rest, values).prod(axis=1)
    return total
