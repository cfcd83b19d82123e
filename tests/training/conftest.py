"""Fixtures of the training tests."""

from __future__ import annotations

import pytest
from torch import nn

from hwprune.testing.toys import toy_data, toy_network
from hwprune.training import Data


@pytest.fixture
def data() -> Data:
    return toy_data()


@pytest.fixture
def model() -> nn.Sequential:
    return toy_network()
