"""Databases of the tests of methods: quick ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy


@pytest.fixture(autouse=True, scope="session")
def _sqlite_without_waiting() -> Iterator[None]:
    """SQLite does not wait for the disk after each transaction; a killed process loses nothing by that."""

    def hurry(connection: object, _: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")  # type: ignore[attr-defined]

    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "connect", hurry)
    yield
    sqlalchemy.event.remove(sqlalchemy.engine.Engine, "connect", hurry)
