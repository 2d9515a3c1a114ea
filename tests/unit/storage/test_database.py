"""Work and de-duplication commit together, whatever comes twice, late, or in between a crash."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdnet_core.clock import run_in_thread
from sdnet_core.errors import StorageError
from sdnet_core.storage.database import Database, MessageKey, StaleMessageError

pytestmark = pytest.mark.anyio

T = TypeVar("T")
PAIRING = bytes(16)


@dataclass(frozen=True, slots=True)
class Incoming:
    key: MessageKey


def incoming(number: int, *, below: int = 1, id_: int | None = None, pairing: bytes = PAIRING) -> Incoming:
    id_bytes = (number if id_ is None else id_).to_bytes(16, "big")
    return Incoming(MessageKey(pairing, "test/1", number, id_bytes, below))


def put(db: sqlite3.Connection, new: Sequence[Incoming]) -> int:
    db.execute("CREATE TABLE IF NOT EXISTS work (id BLOB)")
    db.executemany("INSERT INTO work VALUES (?)", [(message.key.id,) for message in new])
    return len(new)


def works(db: sqlite3.Connection, _: Sequence[Incoming]) -> list[int]:
    return [int.from_bytes(row[0], "big") for row in db.execute("SELECT id FROM work")]


def remembered(db: sqlite3.Connection, _: Sequence[Incoming]) -> int:
    (count,) = db.execute("SELECT COUNT(*) FROM sdnet_done").fetchone()
    return int(count)


async def test_work_is_done_once_also_after_a_restart(tmp_path: Path) -> None:
    database = Database(tmp_path / "db", run_in_thread, [PAIRING])
    assert await database.transaction(put, incoming(1), incoming(2)) == 2
    assert await database.transaction(put, incoming(2), incoming(3)) == 1
    await database.close()
    database = Database(tmp_path / "db", run_in_thread, [PAIRING])
    assert await database.transaction(put, incoming(1), incoming(3)) == 0
    assert await database.transaction(works) == [1, 2, 3]
    await database.close()
    assert (tmp_path / "db").stat().st_mode & 0o777 == 0o600
    with pytest.raises(StorageError, match="closed"):
        await database.transaction(works)


async def test_a_newer_format_is_refused_and_nothing_touched(tmp_path: Path) -> None:
    path = tmp_path / "db"
    database = Database(path, run_in_thread, [PAIRING])
    await database.transaction(lambda db, _: db.execute("UPDATE sdnet_format SET number = 2"))
    await database.close()
    before = path.read_bytes()
    database = Database(path, run_in_thread, [])
    with pytest.raises(StorageError, match="newer version"):
        await database.transaction(works)
    await database.close()
    assert path.read_bytes() == before


async def test_work_that_fails_leaves_nothing_and_may_be_tried_again(tmp_path: Path) -> None:
    database = Database(tmp_path / "db", run_in_thread, [PAIRING])

    def fail(db: sqlite3.Connection, new: Sequence[Incoming]) -> None:
        put(db, new)
        raise ZeroDivisionError

    await database.transaction(put, incoming(1))
    with pytest.raises(ZeroDivisionError):
        await database.transaction(fail, incoming(2))
    assert await database.transaction(works) == [1]
    assert await database.transaction(put, incoming(2)) == 1
    await database.close()


async def test_one_that_fails_does_not_harm_those_that_commit_with_it(tmp_path: Path) -> None:
    database = Database(tmp_path / "db", run_in_thread, [PAIRING])
    failed = 0

    async def one(number: int) -> None:
        nonlocal failed

        def work(db: sqlite3.Connection, new: Sequence[Incoming]) -> None:
            put(db, new)
            if number % 3 == 0:
                raise ZeroDivisionError

        try:
            await database.transaction(work, incoming(number))
        except ZeroDivisionError:
            failed += 1

    async with anyio.create_task_group() as tasks:
        for number in range(1, 100):
            tasks.start_soon(one, number)
    assert failed == 33
    assert sorted(await database.transaction(works)) == [n for n in range(1, 100) if n % 3]
    await database.close()


async def test_callers_that_are_cancelled_stop_nobody_else(tmp_path: Path) -> None:
    database = Database(tmp_path / "db", run_in_thread, [PAIRING])
    await database.transaction(put)
    done = 0

    async def one(number: int) -> None:
        nonlocal done
        with anyio.CancelScope() as scope:
            if number % 2:
                scope.cancel()
            await database.transaction(put, incoming(number))
            done += 1

    for start in range(1, 60, 20):
        async with anyio.create_task_group() as tasks:
            for number in range(start, start + 20):
                tasks.start_soon(one, number)
    with anyio.fail_after(5):
        assert set(await database.transaction(works)) >= {n for n in range(1, 61) if n % 2 == 0}
        await database.close()


async def test_what_is_below_the_limit_is_forgotten_and_refused(tmp_path: Path) -> None:
    database = Database(tmp_path / "db", run_in_thread, [PAIRING])
    for number in range(1, 51):
        await database.transaction(put, incoming(number))
    assert await database.transaction(remembered) == 50
    await database.transaction(put, incoming(51, below=51))
    assert await database.transaction(remembered) == 1
    for stale in (incoming(7, id_=700), incoming(51, id_=701, below=51)):
        with pytest.raises(StaleMessageError) as caught:
            await database.transaction(put, stale)
        assert caught.value.next_number == 52
    # The same message under another number is known all the same.
    assert await database.transaction(put, incoming(60, id_=51, below=51)) == 0
    await database.close()


async def test_pairings_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    other = bytes([1]) * 16
    database = Database(tmp_path / "db", run_in_thread, [PAIRING, other])
    await database.transaction(put, incoming(1))
    assert await database.transaction(put, incoming(1, pairing=other)) == 1
    await database.close()
    database = Database(tmp_path / "db", run_in_thread, [other])
    assert await database.transaction(remembered) == 1
    assert await database.transaction(put, incoming(1, pairing=other)) == 0
    await database.close()


async def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"no database" * 1000)
    database = Database(tmp_path / "db", run_in_thread)
    with pytest.raises(StorageError, match="damaged"):
        await database.transaction(put)
    await database.close()


async def inline(function: Callable[..., T], /, *args: object) -> T:
    return function(*args)


@dataclass(frozen=True, slots=True)
class Round:
    """One batch, and what becomes of it.

    :param late: which earlier batch comes once more before it; None for none.
    """

    size: int
    fate: str
    late: int | None


ROUNDS = st.lists(
    st.builds(
        Round,
        size=st.integers(1, 8),
        fate=st.sampled_from(["good", "lost", "answer lost", "crash before", "crash after"]),
        late=st.none() | st.integers(0, 50),
    ),
    max_size=25,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=ROUNDS, count=st.integers(1, 30))
async def test_model_of_sender_and_receiver(
    rounds: list[Round], count: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Streams break, batches come again from the oldest unsettled one on, either side crashes: once, in order."""
    path = tmp_path_factory.mktemp("model") / "db"
    database = Database(path, inline, [PAIRING])
    await database.transaction(put)
    settled: set[int] = set()
    before: list[list[Incoming]] = []
    good = [Round(8, "good", None)] * count
    for one in (*rounds, *good):
        waiting = [number for number in range(1, count + 1) if number not in settled]
        if not waiting:
            break
        batch = [incoming(number, below=waiting[0]) for number in waiting[: one.size]]
        if one.late is not None and before:
            try:
                assert await database.transaction(put, *before[one.late % len(before)]) == 0
            except StaleMessageError:
                pass  # all of it was settled long ago
        if one.fate == "lost":
            continue
        if one.fate == "crash before":
            with pytest.raises(ZeroDivisionError):
                await database.transaction(crash, *batch)
        else:
            await database.transaction(put, *batch)
            before.append(batch)
        if one.fate.startswith("crash"):
            await database.close()
            database = Database(path, inline, [PAIRING])
        if one.fate == "good":
            settled.update(message.key.number for message in batch)
        assert await database.transaction(remembered) <= 16
    assert await database.transaction(works) == list(range(1, count + 1))
    await database.close()


def crash(db: sqlite3.Connection, new: Sequence[Incoming]) -> None:
    """Do the work and fail before it is committed."""
    put(db, new)
    raise ZeroDivisionError
