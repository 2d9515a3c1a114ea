"""Drops between two nodes, over sealed streams and the real file transfer."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from sdnet_core import NetworkingCore
from sdnet_core.errors import ConflictError, DeviceNotFoundError, InvalidRequestError, NetworkingError, NotFoundError
from sdnet_core.testing import linked_nodes, memory_node, record_events
from sdnet_core.testing import pair as pair_nodes
from sdnet_file_transfer import FileTransferService
from sdnet_spacedrop import drops, outgoing

from .conftest import PLUGINS, configure, run_pair, side

pytestmark = pytest.mark.anyio

MakeFile = Callable[..., Path]


async def test_accepted_files_arrive_in_the_chosen_folder(home: Path, make_file: MakeFile, tmp_path: Path) -> None:
    photo, folder = make_file(), make_file("holiday/day 1/a.txt", 10).parent.parent
    chosen = tmp_path / "chosen"
    async with run_pair(home) as pair:
        async with pair.receiver.core.events.subscribe(["spacedrop-offered"]) as events:
            drop = await pair.send(photo, folder, message="from the lake")
            with anyio.fail_after(5):
                event = (await events.receive()).to_dict()
        assert (event["device_name"], event["message"], event["names"]) == (
            "node0", "from the lake", ("photo.jpg", "holiday"),
        )  # fmt: skip
        (offer,) = await pair.receiver.offered()
        assert (offer.id, offer.state, offer.sender_name, offer.item_count) == (drop.id, "asking", "node0", 4)
        assert [(item.name, item.directory, item.item_count) for item in offer.items] == [
            ("photo.jpg", False, 1), ("holiday", True, 3),
        ]  # fmt: skip
        assert offer.total_bytes == photo.stat().st_size + (folder / "day 1" / "a.txt").stat().st_size
        assert (await pair.sender.until(drop, "asking")).total_bytes == offer.total_bytes
        assert not chosen.exists()
        assert not pair.receiver.downloads.exists()

        accepted = await pair.receiver.drops.accept(offer.id[:8], chosen)
        assert (accepted.state, accepted.folder) == ("accepted", str(chosen))
        sent = await pair.sender.until(drop, "completed")
        received = await pair.receiver.until(drop, "completed")
        assert sent.done_bytes == sent.total_bytes == received.done_bytes
        assert set(received.paths) == {str(chosen / "photo.jpg"), str(chosen / "holiday")}
        assert (chosen / "photo.jpg").read_bytes() == photo.read_bytes()
        assert (chosen / "holiday/day 1/a.txt").read_bytes() == (folder / "day 1/a.txt").read_bytes()
        assert [entry.id for entry in pair.receiver.drops.inbox()] == [drop.id]
        assert pair.receiver.drops.pending() == pair.sender.drops.inbox() == []


async def test_without_a_folder_they_go_to_the_downloads(home: Path, make_file: MakeFile) -> None:
    photo = make_file()
    async with run_pair(home) as pair:
        drop = await pair.send(photo)
        await pair.receiver.offered()
        await pair.receiver.drops.accept(drop.id)
        await pair.receiver.until(drop, "completed")
        await pair.sender.until(drop, "completed")
        assert pair.receiver.received() == {"photo.jpg": photo.read_bytes()}


async def test_a_rejected_drop_leaves_nothing(home: Path, make_file: MakeFile) -> None:
    async with run_pair(home) as pair:
        drop = await pair.send(make_file())
        await pair.receiver.offered()
        rejected = await pair.receiver.drops.reject(drop.id, "Not \x1b[2Jnow.")
        assert rejected.state == "rejected"
        ended = await pair.sender.until(drop, "rejected")
        assert (ended.code, ended.by_peer) == ("rejected", True)
        assert ended.reason == "Not \N{REPLACEMENT CHARACTER}[2Jnow."
        assert not pair.receiver.downloads.exists()
        assert pair.receiver.drops.inbox() == []
        with pytest.raises(ConflictError):
            await pair.receiver.drops.accept(drop.id)


@pytest.mark.parametrize("impatient", ["node0", "node1"])
async def test_an_answer_that_does_not_come_is_told_on_both_sides(
    home: Path, make_file: MakeFile, impatient: str
) -> None:
    configure(home, impatient, "answer_timeout_s = 0.1")
    async with run_pair(home) as pair:
        drop = await pair.send(make_file())
        sent = await pair.sender.until(drop, "timed-out")
        offer = await pair.receiver.until(drop, "timed-out")
        assert (sent.reason, offer.reason) == ("Nobody answered in time.", "Nobody answered in time.")
        assert pair.receiver.drops.pending() == []
        with pytest.raises(ConflictError):
            await pair.receiver.drops.accept(drop.id)
        assert not pair.receiver.downloads.exists()
        # What nobody agreed to is nowhere on the disk.
        assert await pair.receiver.core.plugin_storage("spacedrop").list("drops") == []


async def test_the_sender_cancels_while_the_person_is_asked(home: Path, make_file: MakeFile) -> None:
    async with run_pair(home) as pair:
        drop = await pair.send(make_file())
        await pair.receiver.offered()
        await pair.sender.drops.cancel(drop.id)
        ended = await pair.receiver.until(drop, "cancelled")
        assert (ended.by_peer, ended.reason) == (True, "The sender cancelled it.")
        assert (await pair.sender.until(drop, "cancelled")).by_peer is False
        with pytest.raises(ConflictError):
            await pair.receiver.drops.accept(drop.id)
        with pytest.raises(ConflictError):
            await pair.sender.drops.cancel(drop.id)


@pytest.mark.parametrize("who", ["sender", "receiver"])
async def test_either_side_cancels_while_the_files_come(home: Path, make_file: MakeFile, who: str) -> None:
    big = make_file("film.mkv", 64_000_000)
    async with run_pair(home) as pair:
        drop = await pair.send(big)
        await pair.receiver.offered()
        await pair.receiver.drops.accept(drop.id)
        here, there = (pair.sender, pair.receiver) if who == "sender" else (pair.receiver, pair.sender)
        await here.until(drop, "transferring")
        async with record_events(pair.receiver.core) as events:
            assert (await here.drops.cancel(drop.id)).state == "cancelled"
            ended = await there.until(drop, "cancelled")
            assert ended.by_peer
            with anyio.fail_after(10):
                async for transfer in pair.receiver.core.get_service(FileTransferService).watch(uuid.UUID(drop.id)):
                    state = transfer.state
            assert state == "cancelled"
            await events.wait_for("spacedrop-failed", timeout_s=10)  # which comes when all is tidied up
        assert pair.receiver.received() == {}
        assert pair.receiver.drops.inbox() == []


async def test_several_at_once_go_their_own_ways(home: Path, make_file: MakeFile) -> None:
    async with run_pair(home) as pair:
        drops = [await pair.send(make_file(f"{i}.bin"), message=f"number {i}") for i in range(6)]
        assert {offer.message for offer in await pair.receiver.offered(6)} == {f"number {i}" for i in range(6)}
        for i, drop in enumerate(drops):
            await (pair.receiver.drops.reject if i % 2 else pair.receiver.drops.accept)(drop.id)
        for i, drop in enumerate(drops):
            await pair.sender.until(drop, "rejected" if i % 2 else "completed")
            await pair.receiver.until(drop, "rejected" if i % 2 else "completed")
        assert set(pair.receiver.received()) == {"0.bin", "2.bin", "4.bin"}


async def test_an_offer_comes_back_when_the_link_does(home: Path, make_file: MakeFile) -> None:
    photo = make_file()
    async with run_pair(home) as pair:
        drop = await pair.send(photo)
        await pair.receiver.offered()
        await pair.sender.until(drop, "asking")
        pair.nodes.cut(pair.sender.core, pair.receiver.core)
        await pair.receiver.until(drop, "failed")
        assert pair.receiver.drops.pending() == []
        pair.nodes.heal(pair.sender.core, pair.receiver.core)
        await pair.receiver.offered()
        await pair.receiver.drops.accept(drop.id)
        await pair.sender.until(drop, "completed")
        assert pair.receiver.received() == {"photo.jpg": photo.read_bytes()}


async def test_the_receiver_restarts_while_it_is_asked(home: Path, make_file: MakeFile) -> None:
    photo = make_file()
    async with linked_nodes(1, plugins=PLUGINS, home=home) as nodes:
        sender = side(nodes[0], nodes)

        def other() -> NetworkingCore:
            return memory_node(home, "other", network=nodes.network, discovery=nodes.discovery, plugins=PLUGINS)

        async with other() as core:
            await pair_nodes(sender.core, core, sender.core.randomness)
            drop = await sender.drops.send(core.device_info.id, [photo])
            await side(core, nodes).offered()
            with anyio.fail_after(5):
                async for status in sender.drops.watch(drop.id):
                    if status.asked:
                        break
        async with other() as core:
            (offer,) = await side(core, nodes).offered()
            assert offer.id == drop.id
            await side(core, nodes).drops.accept(offer.id)
            await sender.until(drop, "completed")
            await side(core, nodes).until(drop, "completed")
            assert side(core, nodes).received() == {"photo.jpg": photo.read_bytes()}
        async with other() as core:  # what was received is known after another restart
            (entry,) = side(core, nodes).drops.inbox()
            assert (entry.id, entry.paths) == (drop.id, (str(core.config.downloads_dir / "photo.jpg"),))


async def test_both_restart_while_the_files_come(home: Path, make_file: MakeFile) -> None:
    big = make_file("film.mkv", 64_000_000)
    async with run_pair(home) as pair:
        drop = await pair.send(big)
        await pair.receiver.offered()
        await pair.receiver.drops.accept(drop.id)
        await pair.receiver.until(drop, "transferring")
    async with run_pair(home, paired=False) as pair:
        await pair.sender.until(drop, "completed")
        await pair.receiver.until(drop, "completed")
        assert pair.receiver.received() == {"film.mkv": big.read_bytes()}
        assert [entry.id for entry in pair.receiver.drops.inbox()] == [drop.id]


async def test_a_device_that_takes_no_drops_says_so(home: Path, make_file: MakeFile) -> None:
    configure(home, "node1", 'policy = "never"')
    async with run_pair(home) as pair:
        drop = await pair.send(make_file())
        ended = await pair.sender.until(drop, "rejected")
        assert (ended.code, ended.reason) == ("policy", "This device takes no drops.")
        assert pair.receiver.drops.drops() == []


async def test_trusted_devices_are_accepted_unasked_only_when_configured(home: Path, make_file: MakeFile) -> None:
    configure(home, "node1", 'policy = "accept-trusted"')
    photo = make_file()
    async with run_pair(home) as pair:
        drop = await pair.send(photo)
        await pair.sender.until(drop, "completed")
        await pair.receiver.until(drop, "completed")
        assert pair.receiver.received() == {"photo.jpg": photo.read_bytes()}


async def test_a_device_that_is_away_ends_the_drop(
    home: Path, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "CONNECT_TIMEOUT_S", 0.2)
    async with run_pair(home) as pair:
        pair.nodes.cut(pair.sender.core, pair.receiver.core)
        drop = await pair.send(make_file())
        assert (await pair.sender.until(drop, "failed")).reason


async def test_a_file_that_vanishes_fails_on_both_sides(home: Path, make_file: MakeFile) -> None:
    photo = make_file()
    async with run_pair(home) as pair:
        drop = await pair.send(photo)
        await pair.receiver.offered()
        photo.unlink()
        await pair.receiver.drops.accept(drop.id)
        assert "photo.jpg" in (await pair.sender.until(drop, "failed")).reason
        await pair.receiver.until(drop, "cancelled", "failed")
        assert pair.receiver.received() == {}


async def test_wrong_requests_are_refused(home: Path, make_file: MakeFile, tmp_path: Path) -> None:
    photo = make_file()
    async with run_pair(home) as pair:
        device = pair.receiver.core.device_info.id
        send = pair.sender.drops.send
        wrong: list[tuple[type[NetworkingError], object]] = [
            (DeviceNotFoundError, lambda: send(uuid.uuid4(), [photo])),
            (InvalidRequestError, lambda: send(device, [])),
            (InvalidRequestError, lambda: send(device, [tmp_path / "missing"])),
            (InvalidRequestError, lambda: send(device, ["relative"])),
            (InvalidRequestError, lambda: send(device, [photo], "x" * 2001)),
            (InvalidRequestError, lambda: send(device, [photo], "\ud800")),
            (NotFoundError, lambda: pair.sender.drops.cancel("abc")),
            (NotFoundError, lambda: pair.sender.drops.accept("")),
        ]
        for error, call in wrong:
            with pytest.raises(error):
                await call()  # type: ignore[operator]
        drop = await pair.send(photo)
        await pair.receiver.offered()
        with pytest.raises(ConflictError):
            await pair.sender.drops.accept(drop.id)
        with pytest.raises(InvalidRequestError):
            await pair.receiver.drops.accept(drop.id, "relative")
        with pytest.raises(InvalidRequestError):
            await pair.receiver.drops.accept(drop.id, photo)
        assert [offer.id for offer in pair.receiver.drops.pending()] == [drop.id]


async def test_what_is_kept_is_bounded(home: Path, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drops, "MAX_KEPT", 3)
    async with run_pair(home) as pair:
        sent = []
        for number in range(5):
            sent.append(await pair.send(make_file(f"{number}.txt", 10)))
            await pair.receiver.offered()
            await pair.receiver.drops.reject(sent[-1].id)
            await pair.sender.until(sent[-1], "rejected")
        kept = [drop.id for drop in reversed(sent[2:])]
        assert [drop.id for drop in pair.receiver.drops.drops()] == kept
    async with run_pair(home, paired=False) as pair:
        assert [drop.id for drop in pair.receiver.drops.drops()] == kept
        assert [drop.state for drop in pair.sender.drops.drops()] == ["rejected"] * 3
