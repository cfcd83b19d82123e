"""An NVIDIA GPU through NVML by ctypes: names, clocks, power, temperature, and why its clocks are not higher.

Every call may be missing from the library or refused by the GPU; what is then not known is None, never a guess.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

LIBRARIES = ("libnvidia-ml.so.1", "libnvidia-ml.so", "nvml.dll")
SUCCESS, INSUFFICIENT_SIZE = 0, 7
GRAPHICS, SM, MEMORY = 0, 1, 2  # nvmlClockType_t
CELSIUS_OF_GPU = 0  # nvmlTemperatureSensors_t
SLOWDOWN_LIMIT = 1  # nvmlTemperatureThresholds_t
TEXT_BYTES, LIST_LENGTH = 96, 512

# Bits of nvmlClocksEventReasons that mean "slower than set", by the names that nvidia-smi gives them
REASONS = {
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
}
# nvmlPerfPolicyType_t: since when the GPU was held back by each, a counter in ns
VIOLATIONS = {"power": 0, "thermal": 1, "board_limit": 3}


class _Process(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("memory", ctypes.c_ulonglong),
        ("instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class _Violation(ctypes.Structure):
    _fields_ = (("reference_us", ctypes.c_ulonglong), ("violation_ns", ctypes.c_ulonglong))


@dataclass(frozen=True)
class Reading:
    """The clock of the GPU's processors in MHz, its temperature and power in W now, each None where it is not told."""

    sm_mhz: int | None
    celsius: int | None
    watts: float | None


class Nvml:
    """One GPU, by its PCI bus id: CUDA and NVML number GPUs differently. Without an id the first one of NVML."""

    def __init__(self, library: Any, bus_id: str = "") -> None:
        self._library = library
        self._bus_id = bus_id
        self._device = ctypes.c_void_p()
        if not self._found():
            raise LookupError(f"NVML knows no GPU {bus_id}")

    @classmethod
    def open(cls, bus_id: str = "", library: str = "") -> Nvml | None:
        """The GPU, or None where there is no NVML, no driver or no such GPU. Close it after use."""
        for name in (library,) if library else LIBRARIES:
            try:
                loaded = ctypes.CDLL(name)
                if loaded.nvmlInit_v2() != SUCCESS:
                    return None
            except (OSError, AttributeError):
                continue
            try:
                return cls(loaded, bus_id)
            except LookupError:
                loaded.nvmlShutdown()
                return None
        return None

    @classmethod
    @contextmanager
    def opened(cls, bus_id: str = "", library: str = "") -> Iterator[Nvml | None]:
        """`open`, closed at the end."""
        card = cls.open(bus_id, library)
        try:
            yield card
        finally:
            if card is not None:
                card.close()

    def close(self) -> None:
        """Give NVML back; the object is not used afterwards."""
        self._call("nvmlShutdown")

    def number(self) -> str:
        """What `nvidia-smi -i` calls it: its number there, which CUDA_VISIBLE_DEVICES does not change."""
        number = self._number("nvmlDeviceGetIndex")
        return (self._bus_id or "0") if number is None else str(number)

    def name(self) -> str:
        """The product's name, or ""."""
        return self._text("nvmlDeviceGetName", self._device)

    def driver(self) -> str:
        """The driver's version, or ""."""
        return self._text("nvmlSystemGetDriverVersion")

    def reading(self) -> Reading:
        """Clock, temperature and power now."""
        watts = self._number("nvmlDeviceGetPowerUsage")
        return Reading(
            self.clock_mhz(SM),
            self._number("nvmlDeviceGetTemperature", ctypes.c_int(CELSIUS_OF_GPU)),
            None if watts is None else watts / 1000,
        )

    def clock_mhz(self, kind: int) -> int | None:
        """One clock now."""
        return self._number("nvmlDeviceGetClockInfo", ctypes.c_int(kind))

    def highest_mhz(self, kind: int) -> int | None:
        """The highest that a clock is made for."""
        return self._number("nvmlDeviceGetMaxClockInfo", ctypes.c_int(kind))

    def power_limit_w(self) -> float | None:
        """The limit that is in force."""
        limit = self._number("nvmlDeviceGetEnforcedPowerLimit")
        return None if limit is None else limit / 1000

    def slowdown_celsius(self) -> int | None:
        """The temperature at which the hardware slows itself down."""
        return self._number("nvmlDeviceGetTemperatureThreshold", ctypes.c_int(SLOWDOWN_LIMIT))

    def reasons(self) -> Mapping[str, bool] | None:
        """What holds the clocks down now: each of `REASONS`, or None where NVML does not tell."""
        bits = ctypes.c_ulonglong()
        names = "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"  # newer, older
        if all(self._call(name, self._device, ctypes.byref(bits)) != SUCCESS for name in names):
            return None
        return {name: bool(bits.value & bit) for name, bit in REASONS.items()}

    def violations_ns(self) -> Mapping[str, int]:
        """For how long the GPU was held back since the driver started, by cause; what it does not count is absent."""
        found = {}
        for name, policy in VIOLATIONS.items():
            status = _Violation()
            arguments = self._device, ctypes.c_int(policy), ctypes.byref(status)
            if self._call("nvmlDeviceGetViolationStatus", *arguments) == SUCCESS:
                found[name] = int(status.violation_ns)
        return found

    def other_processes(self) -> tuple[int, ...]:
        """The process numbers of other programs that compute on this GPU."""
        for name in ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"):
            count, found = ctypes.c_uint(LIST_LENGTH), (_Process * LIST_LENGTH)()
            if self._call(name, self._device, ctypes.byref(count), found) == SUCCESS:
                return tuple(item.pid for item in found[: count.value] if item.pid != os.getpid())
        return ()

    def supported_mhz(self) -> tuple[int, tuple[int, ...]] | None:
        """(memory clock, graphics clocks that go with it): the highest of the one, all of the other, falling."""
        memory = self._list("nvmlDeviceGetSupportedMemoryClocks")
        if not memory:
            return None
        graphics = self._list("nvmlDeviceGetSupportedGraphicsClocks", ctypes.c_uint(max(memory)))
        return (max(memory), tuple(sorted(graphics, reverse=True))) if graphics else None

    def facts(self) -> tuple[tuple[str, str], ...]:
        """What belongs in a fingerprint; whether clocks are locked does not, since NVML does not tell it."""
        limit = self.power_limit_w()
        return (
            ("gpu", self.name() or "unknown"),
            ("driver", self.driver() or "unknown"),
            ("power_limit", "unknown" if limit is None else f"{limit:.0f} W"),
        )

    def _found(self) -> bool:
        """Look the GPU up; one that is the only one is that one, also where NVML does not know the bus (Jetson)."""
        by_bus = self._bus_id.encode(), ctypes.byref(self._device)
        if self._bus_id and self._call("nvmlDeviceGetHandleByPciBusId_v2", *by_bus) == SUCCESS:
            return True
        count = ctypes.c_uint()
        if self._bus_id and (self._call("nvmlDeviceGetCount_v2", ctypes.byref(count)) != SUCCESS or count.value != 1):
            return False
        first = ctypes.c_uint(0), ctypes.byref(self._device)
        return self._call("nvmlDeviceGetHandleByIndex_v2", *first) == SUCCESS

    def _call(self, name: str, *arguments: Any) -> int:
        function: Callable[..., int] | None = getattr(self._library, name, None)
        return -1 if function is None else int(function(*arguments))

    def _number(self, name: str, *arguments: Any) -> int | None:
        value = ctypes.c_uint()
        done = self._call(name, self._device, *arguments, ctypes.byref(value))
        return int(value.value) if done == SUCCESS else None

    def _text(self, name: str, *arguments: Any) -> str:
        buffer = ctypes.create_string_buffer(TEXT_BYTES)
        done = self._call(name, *arguments, buffer, ctypes.c_uint(TEXT_BYTES))
        return buffer.value.decode(errors="replace") if done == SUCCESS else ""

    def _list(self, name: str, *arguments: Any) -> list[int]:
        count, values = ctypes.c_uint(LIST_LENGTH), (ctypes.c_uint * LIST_LENGTH)()
        done = self._call(name, self._device, *arguments, ctypes.byref(count), values)
        return [int(value) for value in values[: count.value]] if done == SUCCESS else []
