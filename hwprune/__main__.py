"""`python -m hwprune` is the command `hwprune`."""

from __future__ import annotations

import sys

from hwprune.cli import main

sys.exit(main())
