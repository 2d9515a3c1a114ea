"""The audit log: what goes in, what is noticed when somebody changes it."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.audit import AuditLog
from sdnet_core.clock import SystemClock, SystemRandomness
from sdnet_core.devices.refusals import Refusals
from sdnet_core.errors import NetworkingError
from sdnet_core.events import DeviceRenamed, EventBus, PeerDisconnected, PeerRefused
from sdnet_core.storage import SecureStorage
from sdnet_core.storage.atomic import DamagedError
from sdnet_core.storage.chained import Chain

pytestmark = pytest.mark.anyio
T = TypeVar("T")
KEY = bytes(range(32))


async def inline(function: Callable[..., T], /, *args: Any) -> T:
    return function(*args)


@asynccontextmanager
async def running(directory: Path, **options: Any) -> AsyncIterator[AuditLog]:
    clock, randomness = SystemClock(), SystemRandomness()
    storage = SecureStorage(directory / "network", KEY, clock=clock, randomness=randomness, runner=inline)
    log = AuditLog(directory, KEY, storage, clock=clock, runner=inline, **options)
    async with anyio.create_task_group() as tasks:
        await tasks.start(log.run)
        yield log
        tasks.cancel_scope.cancel()


def renamed(number: int, name: str = "desk") -> DeviceRenamed:
    return DeviceRenamed(at=1000.0 + number, device_id=uuid.UUID(int=number), old_name="old", device_name=name)


async def filled(directory: Path, first: int, last: int, **options: Any) -> None:
    async with running(directory, **options) as log:
        for number in range(first, last + 1):
            log.take(renamed(number))
            await log.flush()


async def test_events_of_concern_are_on_disk_when_flush_returns(tmp_path: Path) -> None:
    async with running(tmp_path) as log:
        log.take(renamed(1, "d\u00e9sk\n\x1b"))
        log.take(PeerDisconnected(peer_id="p"))  # of no concern
        await log.flush()
        opened, line = (json.loads(text) for text in log.path.read_text().splitlines())
        assert opened["kind"] == "audit-opened"
        assert (line["n"], line["at"], line["kind"], line["device_name"]) == (
            2,
            1001.0,
            "device-renamed",
            "d\u00e9sk\n\x1b",
        )
        assert log.path.stat().st_mode & 0o777 == 0o600
        assert [found["kind"] for found in await log.read(since=1001)] == ["audit-opened", "device-renamed"]
        assert await log.read(since=1e12) == []
        assert len(await log.read(limit=1)) == 1


async def test_it_goes_on_after_a_restart_and_is_right(tmp_path: Path) -> None:
    for start in (1, 11, 21):
        await filled(tmp_path, start, start + 9)
    async with running(tmp_path) as log:
        report = await log.verify()
        assert (report.lines, report.first, report.problems) == (31, 1, ())
        assert [line["n"] for line in await log.read()] == list(range(1, 32))


async def test_full_files_are_rotated_the_oldest_go_and_what_is_left_is_right(tmp_path: Path) -> None:
    await filled(tmp_path, 1, 60, max_file_bytes=1000)
    await filled(tmp_path, 61, 70, max_file_bytes=1000)
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(tmp_path) if entry.is_file()}
    assert sorted(sizes) == ["audit.log", "audit.log.1", "audit.log.2", "audit.log.3", "audit.log.4"]
    assert max(sizes.values()) < 2000
    async with running(tmp_path, max_file_bytes=1000) as log:
        report = await log.verify()
        assert report.problems == ()
        assert report.first > 1
        numbers = [line["n"] for line in await log.read()]
        assert numbers == list(range(report.first, report.first + report.lines))


def change(text: str) -> str:
    return text.replace('"device_name":"desk"', '"device_name":"evil"', 1)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (change, "MAC is wrong"),
        (lambda text: "".join(text.splitlines(keepends=True)[:-1]), "at its end are missing"),
        (lambda text: "".join(text.splitlines(keepends=True)[:4] + text.splitlines(keepends=True)[5:]), "MAC is wrong"),
        (lambda text: "".join(text.splitlines(keepends=True)[1:]), "MAC is wrong"),
        (lambda text: text[:-9], "unfinished|not a line"),
        (lambda text: "", "missing"),
    ],
)
async def test_what_was_changed_or_taken_out_is_noticed(
    tmp_path: Path, damage: Callable[[str], str], said: str
) -> None:
    await filled(tmp_path, 1, 10)
    file = tmp_path / "audit.log"
    async with running(tmp_path) as log:  # while the node runs
        whole = file.read_text()
        file.write_text(damage(whole))
        problems = (await log.verify()).problems
        assert problems
        file.write_text(whole)
        assert (await log.verify()).problems == ()
    file.write_text(damage(whole))
    async with running(tmp_path) as log:  # while it did not
        await log.flush()
        (told,) = (line for line in await log.read() if line["kind"] == "audit-damaged")
        assert re.search(said, told["detail"]), told["detail"]
        log.take(renamed(11))
        await log.flush()
        assert (await log.read())[-1]["kind"] == "device-renamed"  # it goes on


async def test_a_file_that_was_taken_out_is_noticed(tmp_path: Path) -> None:
    await filled(tmp_path, 1, 30, max_file_bytes=1000)
    (tmp_path / "audit.log.2").unlink()
    async with running(tmp_path) as log:
        assert any("does not go on" in problem for problem in (await log.verify()).problems)


async def test_following_gives_each_line_once(tmp_path: Path) -> None:
    await filled(tmp_path, 1, 3)
    async with running(tmp_path) as log:
        names = []
        async with anyio.create_task_group() as tasks:

            async def follow() -> None:
                async for line in log.follow(since=0):
                    names.append(line["n"])
                    if line["n"] == 8:
                        return

            tasks.start_soon(follow)
            for number in range(4, 8):
                log.take(renamed(number))
                await log.flush()
        assert names == list(range(1, 9))


async def test_a_burst_is_bounded_and_says_what_it_dropped(tmp_path: Path) -> None:
    async with running(tmp_path) as log:
        for number in range(5000):
            log.take(renamed(number))
        await log.flush()
        assert [line["count"] for line in await log.read() if line["kind"] == "audit-dropped"] == [5000 - 4096]


class StillClock:
    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


async def test_refusals_are_told_at_a_bounded_rate_and_none_is_uncounted() -> None:
    clock = StillClock()
    bus = EventBus(clock)
    told: list[PeerRefused] = []
    bus.add_tap(lambda event: told.append(event) if isinstance(event, PeerRefused) else None)
    refusals = Refusals(clock, bus)
    for _ in range(100):
        refusals.refused("one", None, "echo", "no")
    assert [event.count for event in told] == [1]
    clock.time = 61
    refusals.refused("one", None, "echo", "no")
    assert [event.count for event in told] == [1, 100]
    for number in range(5000):  # one who changes identity
        refusals.refused(f"peer{number}", None, "echo", "no")
    assert len(told) == 31
    refusals.session_failed("peer", None, NetworkingError("the line was cut"))
    assert len(told) == 31


@given(
    st.lists(st.dictionaries(st.text(min_size=1).filter(lambda key: key not in ("n", "mac")), st.text()), max_size=8),
    st.data(),
)
def test_a_chain_takes_exactly_what_it_made(entries: list[dict[str, str]], data: st.DataObject) -> None:
    writer, reader = Chain(KEY), Chain(KEY)
    lines = [writer.append(entry) for entry in entries]
    assert [reader.take(line[:-1]) for line in lines] == entries
    assert (reader.number, reader.mac) == (writer.number, writer.mac)
    if not lines:
        return
    changed = data.draw(st.integers(min_value=0, max_value=len(lines) - 1))
    line = bytearray(lines[changed][:-1])
    line[data.draw(st.integers(min_value=0, max_value=len(line) - 1))] ^= data.draw(st.integers(1, 255))
    reader = Chain(KEY)
    for index, original in enumerate(lines):
        if index == changed:
            with pytest.raises(DamagedError):
                reader.take(bytes(line))
            return
        reader.take(original[:-1])
