"""Drops between two nodes that are not paired: finding each other, the number, the answer, the files."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest

from sdnet_core.errors import ConflictError, InvalidRequestError, NotFoundError, RefusedError
from sdnet_core.testing import linked_nodes, memory_node, record_events
from sdnet_file_transfer import FileTransferService
from sdnet_spacedrop import DropStatus, SpacedropMet, SpacedropOffered, SpacedropService, finder

from .conftest import PLUGINS, Pair, configure, run_pair

pytestmark = pytest.mark.anyio

MakeFile = Callable[..., Path]
EVERYONE = 'visibility = "everyone"'


@pytest.fixture(autouse=True)
def quick_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder, "LOOK_S", 0.1)  # nothing is slow in memory


@asynccontextmanager
async def strangers(home: Path, sender: str = "", receiver: str = EVERYONE) -> AsyncIterator[Pair]:
    """Two nodes that are not paired; the receiver lets everyone find it."""
    configure(home, "node0", sender)
    configure(home, "node1", receiver)
    async with run_pair(home, paired=False) as pair:
        yield pair


async def meet(pair: Pair, *paths: Path, message: str = "") -> tuple[DropStatus, DropStatus]:
    """Turn to the receiver; gives what both sides see then."""
    drop = await pair.sender.drops.send_nearby(pair.receiver.core.identity.peer_id, paths, message)
    (seen,) = await pair.receiver.offered()
    return drop, seen


async def offer(pair: Pair, *paths: Path, message: str = "") -> DropStatus:
    """Turn to the receiver, and find the numbers equal."""
    drop, _ = await meet(pair, *paths, message=message)
    await pair.sender.drops.confirm(drop.id)
    return await pair.receiver.until(drop.id, "asking")


async def test_who_lets_everyone_find_it_is_found(home: Path) -> None:
    async with strangers(home) as pair:
        (found,) = await pair.sender.drops.nearby()
        peer_id = pair.receiver.core.identity.peer_id
        assert (found.name, found.paired, found.peer_id, found.device_id) == ("node1", False, peer_id, None)
        assert found.id in peer_id
        assert await pair.receiver.drops.nearby() == []  # the sender did not
        for reference in ("node1", "NODE", found.id, found.id[:4], peer_id):
            assert await pair.sender.drops.find_recipients([reference], nearby=True) == [found]
        assert await pair.sender.drops.find_recipients([], everyone=True, nearby=True) == [found]
        with pytest.raises(NotFoundError, match="--nearby"):
            await pair.sender.drops.find_recipients(["node1"])
        with pytest.raises(NotFoundError, match="visibility everyone"):
            await pair.sender.drops.find_recipients(["carol"], nearby=True)


async def test_paired_devices_are_found_under_their_proven_names(home: Path) -> None:
    configure(home, "node1", EVERYONE)
    async with run_pair(home) as pair:
        (found,) = await pair.sender.drops.nearby()
        assert (found.name, found.paired, found.connected) == ("node1", True, True)
        assert found.id == found.device_id == str(pair.receiver.core.device_info.id)
        assert await pair.sender.drops.find_recipients([], everyone=True) == [found]


async def test_files_cross_when_both_people_agree(home: Path, make_file: MakeFile, tmp_path: Path) -> None:
    photo, folder = make_file(), make_file("holiday/day 1/a.txt", 10).parent.parent
    chosen = tmp_path / "chosen"
    async with strangers(home) as pair, record_events(pair.receiver.core) as events:
        drop, seen = await meet(pair, photo, folder, message="from the lake")
        assert drop.check == seen.check
        assert (drop.id, drop.state, drop.device_name, drop.device_id) == (seen.id, "comparing", "node1", None)
        assert (seen.role, seen.state, seen.sender_name, seen.items, seen.message) == (
            "receiver", "comparing", "node0", (), "",
        )  # fmt: skip
        met = await events.wait_for(SpacedropMet)
        assert (str(met.drop_id), met.check, met.sender_name) == (drop.id, drop.check, "node0")
        await pair.sender.drops.confirm(drop.id[:8])
        asked = await pair.receiver.until(drop.id, "asking")
        assert (asked.message, [item.name for item in asked.items]) == ("from the lake", ["photo.jpg", "holiday"])
        offered = await events.wait_for(SpacedropOffered)
        assert (offered.device_id, offered.check, offered.names) == (None, drop.check, ("photo.jpg", "holiday"))
        assert offered.folder == str(pair.receiver.downloads)
        await pair.receiver.drops.accept(drop.id, chosen)
        assert (await pair.sender.until(drop.id, "completed")).done_bytes == drop.total_bytes
        received = await pair.receiver.until(drop.id, "completed")
        assert set(received.paths) == {str(chosen / "photo.jpg"), str(chosen / "holiday")}
        assert (chosen / "photo.jpg").read_bytes() == photo.read_bytes()
        assert (chosen / "holiday/day 1/a.txt").exists()
        assert [path.name for path in chosen.iterdir() if path.name.startswith(".")] == []
        assert pair.receiver.drops.inbox()[0].id == drop.id
        for side in (pair.sender, pair.receiver):
            assert side.drops.history()[0].peer_id
            assert side.core.get_service(FileTransferService).transfers() == []


async def test_nothing_is_told_before_the_sender_has_compared(home: Path, make_file: MakeFile) -> None:
    async with strangers(home) as pair:
        drop, seen = await meet(pair, make_file("secret plan.txt"), message="hush")
        with pytest.raises(ConflictError, match=drop.check):
            await pair.receiver.drops.accept(seen.id)
        assert (seen.items, seen.message, seen.total_bytes) == ((), "", 0)
        await pair.sender.drops.cancel(drop.id, "The numbers differ.")
        ended = await pair.receiver.until(drop.id, "cancelled")
        assert (ended.items, ended.reason, ended.by_peer) == ((), "The numbers differ.", True)
        assert pair.receiver.received() == {}


async def test_the_receiver_says_no_at_the_number_and_at_the_offer(home: Path, make_file: MakeFile) -> None:
    async with strangers(home) as pair:
        drop, seen = await meet(pair, make_file())
        await pair.receiver.drops.reject(seen.id, "Who are you?")
        ended = await pair.sender.until(drop.id, "rejected")
        assert (ended.code, ended.reason, ended.by_peer) == ("rejected", "Who are you?", True)
        with pytest.raises(ConflictError, match="rejected"):
            await pair.sender.drops.confirm(drop.id)
        drop = await offer(pair, make_file())
        await pair.receiver.drops.cancel(drop.id)
        assert (await pair.sender.until(drop.id, "rejected")).by_peer
        assert pair.receiver.received() == {}


@pytest.mark.parametrize("answer", ["", "asking"])
async def test_nobody_answers_in_time(home: Path, make_file: MakeFile, answer: str) -> None:
    short = "answer_timeout_s = 0.5"
    async with strangers(home, short, f"{EVERYONE}\n{short}") as pair:
        drop, _ = await meet(pair, make_file())
        if answer:
            await pair.sender.drops.confirm(drop.id)
        assert (await pair.receiver.until(drop.id, "timed-out")).reason
        assert (await pair.sender.until(drop.id, "timed-out")).reason


async def test_either_side_cancels_while_files_move(home: Path, make_file: MakeFile) -> None:
    for who in ("sender", "receiver"):
        async with strangers(home) as pair:
            link = pair.nodes.link(*pair.nodes)
            drop = await offer(pair, make_file(f"{who}.bin", 3_000_000))
            link.bytes_per_s = 1_000_000
            await pair.receiver.drops.accept(drop.id)
            await pair.sender.until(drop.id, "transferring")
            await getattr(pair, who).drops.cancel(drop.id)
            link.bytes_per_s = None
            sender = await pair.sender.until(drop.id, "cancelled")
            receiver = await pair.receiver.until(drop.id, "cancelled")
            assert (sender.by_peer, receiver.by_peer) == (who == "receiver", who == "sender")
            assert pair.receiver.received() == {}
            assert not pair.receiver.downloads.exists() or list(pair.receiver.downloads.iterdir()) == []


@pytest.mark.parametrize("when", ["comparing", "asking", "transferring"])
async def test_a_lost_connection_ends_it_and_nothing_stays(home: Path, make_file: MakeFile, when: str) -> None:
    async with strangers(home) as pair:
        link = pair.nodes.link(*pair.nodes)
        drop, _ = await meet(pair, make_file("a.bin", 3_000_000))
        if when != "comparing":
            await pair.sender.drops.confirm(drop.id)
            await pair.receiver.until(drop.id, "asking")
        if when == "transferring":
            link.bytes_per_s = 1_000_000
            await pair.receiver.drops.accept(drop.id)
            await pair.receiver.until(drop.id, "transferring")
        link.cut()
        for side in (pair.sender, pair.receiver):
            assert (await side.until(drop.id, "failed")).reason
        assert pair.receiver.received() == {}


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_a_full_disk_ends_it_and_nothing_stays(
    home: Path, make_file: MakeFile, small_disks: Any, when: str
) -> None:
    size = 12 << 20
    async with strangers(home) as pair:
        # 16 MiB stay free on every disk.
        place = small_disks.mount(pair.receiver.downloads, (24 if when == "before" else 48) << 20)
        drop = await offer(pair, make_file("a.bin", size))
        pair.nodes.link(*pair.nodes).bytes_per_s = size // 2
        await pair.receiver.drops.accept(drop.id)
        expected = []
        if when == "meanwhile":
            async for status in pair.receiver.drops.watch(drop.id):
                if status.done_bytes:
                    break
            expected = [(await anyio.to_thread.run_sync(small_disks.fill, place)).name]
        for side, by_peer in ((pair.sender, True), (pair.receiver, False)):
            ended = await side.until(drop.id, "failed")
            assert ("disk" in ended.reason, ended.by_peer) == (True, by_peer), ended
        assert [path.name for path in place.iterdir()] == expected
        assert pair.receiver.drops.inbox() == []


async def test_who_is_not_visible_to_everyone_tells_nothing(home: Path, make_file: MakeFile) -> None:
    for setting in ('visibility = "paired"', 'visibility = "off"', f'{EVERYONE}\npolicy = "never"'):
        async with strangers(home, receiver=setting) as pair:
            assert await pair.sender.drops.nearby() == []
            # Also one that knows where it is learns nothing.
            peer_id = pair.receiver.core.identity.peer_id
            stranger = finder.Stranger(peer_id, pair.receiver.core.addresses, "somebody")
            pair.sender.drops._finder.strangers[peer_id] = stranger
            with pytest.raises(RefusedError, match="not paired"):
                await pair.sender.drops.send_nearby(peer_id, [make_file()])
            assert pair.receiver.drops.drops() == []


async def test_visibility_is_kept_and_passes(home: Path) -> None:
    async with strangers(home, receiver="") as pair:
        visibility = pair.receiver.drops.visibility
        assert visibility.status().visibility == "paired"
        await visibility.set("everyone")
        assert [device.name for device in await pair.sender.drops.nearby()] == ["node1"]
    async with run_pair(home, paired=False) as pair:  # over a restart
        assert [device.name for device in await pair.sender.drops.nearby()] == ["node1"]
        async with record_events(pair.receiver.core) as events:
            status = await pair.receiver.drops.visibility.set("off", 0.5)
            assert (status.visibility, status.then) == ("off", "everyone")
            assert await pair.sender.drops.nearby() == []
            changed = [await events.wait_for("spacedrop-visibility-changed") for _ in range(2)]
        assert [event.visibility for event in changed] == ["off", "everyone"]
        assert [device.name for device in await pair.sender.drops.nearby()] == ["node1"]


async def test_visibility_off_is_for_paired_devices_too(home: Path, make_file: MakeFile) -> None:
    async with run_pair(home) as pair:
        await pair.receiver.drops.visibility.set("off")
        drop = await pair.send(make_file())
        assert (await pair.sender.until(drop, "rejected")).code == "policy"


async def test_a_stranger_who_calls_himself_like_a_paired_device_is_not_taken_for_it(home: Path) -> None:
    configure(home, "node2", EVERYONE)
    async with linked_nodes(2, plugins=PLUGINS, home=home) as nodes:
        other = memory_node(home, "node2", network=nodes.network, discovery=nodes.discovery, plugins=PLUGINS)
        async with other as impostor:
            a, b = nodes
            found = a.get_service(SpacedropService)._finder
            (_, stranger) = await found.look()
            assert (stranger.name, stranger.peer_id) == ("node2", impostor.identity.peer_id)
            same_name = [msgspec.structs.replace(stranger, name="node1")]
            assert found._choose("node1", same_name, nearby=True).device_id == str(b.device_info.id)


async def test_a_restart_ends_it_and_clears_away_what_was_left(home: Path, make_file: MakeFile) -> None:
    photo = make_file("a.bin", 3_000_000)
    async with strangers(home) as pair:
        drop = await offer(pair, photo)
        pair.nodes.link(*pair.nodes).bytes_per_s = 500_000
        await pair.receiver.drops.accept(drop.id)
        await pair.receiver.until(drop.id, "transferring")
        downloads = pair.receiver.downloads
        left = downloads / f".sdnet-partial-{uuid.UUID(drop.id).hex}"
        saved = await pair.receiver.core.plugin_storage("spacedrop").load(f"drops/{drop.id}")
        assert saved is not None
    # As after a kill: the record says that it goes on, and the part file is there.
    (left / "tree").mkdir(parents=True)
    async with run_pair(home, paired=False) as pair:
        await pair.receiver.core.plugin_storage("spacedrop").store(f"drops/{drop.id}", saved)
    async with run_pair(home, paired=False) as pair:
        ended = await pair.receiver.until(drop.id, "failed")
        assert "stopped" in ended.reason
        assert not left.exists()
        assert (await pair.sender.until(drop.id, "failed")).reason


async def test_what_cannot_be_sent_is_said_at_once(home: Path, tmp_path: Path) -> None:
    async with strangers(home) as pair:
        with pytest.raises(InvalidRequestError):
            await meet(pair, tmp_path / "missing")
        with pytest.raises(NotFoundError, match="not near"):
            await pair.sender.drops.send_nearby("12D3KooWnobody", [tmp_path])
        assert pair.receiver.drops.drops() == []


async def test_a_folder_that_cannot_be_one_is_refused_and_the_offer_waits_on(home: Path, make_file: MakeFile) -> None:
    async with strangers(home) as pair:
        drop = await offer(pair, make_file())
        for folder in (make_file("file"), make_file("file") / "below", "relative"):
            with pytest.raises(InvalidRequestError):
                await pair.receiver.drops.accept(drop.id, folder)
        assert pair.receiver.drops.get(drop.id).state == "asking"
