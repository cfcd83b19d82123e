"""A tensor as bytes, for the seam where NumPy may be absent: the device side. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwprune.core.errors import UsageError, unknown_name

if TYPE_CHECKING:
    import numpy as np

ITEM_BYTES = {
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "int8": 1,
    "uint8": 1,
    "int32": 4,
    "int64": 8,
    "bool": 1,
}


def volume(shape: tuple[int, ...]) -> int:
    """How many elements a shape has; 1 for a scalar."""
    count = 1
    for size in shape:
        count *= size
    return count


@dataclass(frozen=True)
class RawTensor:
    """Elements in C order, little-endian; `dtype` is NumPy's name of their type.

    Raises `UsageError` for an unknown type, a negative size, and data that is not as long as type and shape say.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise unknown_name("tensor type", self.dtype, ITEM_BYTES)
        if any(size < 0 for size in self.shape):
            raise UsageError(f"a tensor cannot have the shape {self.shape}", hint="use sizes of 0 or more")
        expected = volume(self.shape) * ITEM_BYTES[self.dtype]
        if len(self.data) != expected:
            raise UsageError(
                f"a {self.dtype} tensor of shape {self.shape} has {expected} bytes, not {len(self.data)}",
                hint="send the elements in C order, without padding",
            )

    @classmethod
    def of(cls, array: np.ndarray) -> RawTensor:
        """The bytes of a NumPy array of any layout and byte order."""
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        return cls(array.dtype.name, tuple(int(size) for size in array.shape), little.tobytes())

    def array(self) -> np.ndarray:
        """A NumPy array of its own with these elements."""
        import numpy as np

        kind = np.dtype(self.dtype).newbyteorder("<")
        return np.frombuffer(self.data, kind).reshape(self.shape).astype(self.dtype)
