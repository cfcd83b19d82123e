"""Devices: where a network is timed. `connect(target)` opens a board; `devices()` lists the device files."""

from hwprune.devices.board import AbstractBoard, Anchor, Board, WorkerDied
from hwprune.devices.connect import check, connect
from hwprune.devices.files import DeviceInfo, devices, find_device, resolve
from hwprune.runtimes._base import Check

__all__ = [
    "AbstractBoard",
    "Anchor",
    "Board",
    "Check",
    "DeviceInfo",
    "WorkerDied",
    "check",
    "connect",
    "devices",
    "find_device",
    "resolve",
]
