"""Devices: where a network is timed. `connect(target)` opens a board; `devices()` lists the device files."""

from hwprune.devices.board import Board, connect
from hwprune.devices.checks import Check
from hwprune.devices.files import DeviceInfo, devices, find_device, resolve

__all__ = ["Board", "Check", "DeviceInfo", "connect", "devices", "find_device", "resolve"]
