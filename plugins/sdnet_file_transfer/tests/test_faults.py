"""Daemons that are killed, and links that are cut, at seeded moments of a transfer; disks that fill up.

``nox -s faults_files`` does it at 100 moments; ``SDNET_TEST_FAULTS`` says how many.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from blake3 import blake3

from sdnet_core import PeerStream
from sdnet_core.testing import Daemon, LinkedNodes, linked_nodes, paired_daemons
from sdnet_file_transfer import FileTransferPlugin, FileTransferService, Transfer, TransferState

MOMENTS = int(os.environ.get("SDNET_TEST_FAULTS", "4"))
SEED = int(os.environ.get("SDNET_TEST_SEED", "1"))
RATE = 40 << 20
"""Bytes a second: slow enough for a fault to meet every phase of a transfer."""
DEADLINE_S = 180.0
KINDS = ("sender", "receiver", "both", "link")


def digests(root: Path) -> dict[str, str]:
    """The hash of every file below a folder, and its folders."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        found[name] = "folder" if path.is_dir() else blake3(path.read_bytes()).hexdigest()
    return found


def make_source(root: Path, chance: random.Random) -> None:
    """A tree of large and small files, and an empty folder, beside one large file."""
    (root / "tree/empty").mkdir(parents=True)
    for number in range(300):
        path = root / f"tree/{number % 7}/{number % 3}/small {number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.randrange(5000)))
    (root / "tree/large").write_bytes(chance.randbytes(12 << 20))
    (root / "tree/middle").write_bytes(chance.randbytes(3 << 20))
    (root / "big.bin").write_bytes(chance.randbytes(16 << 20))


class Node:
    """One of the daemons, which may be dead."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.port = int(daemon.environment["SDNET_NODE_LISTEN"].rpartition("/")[2])
        self.pid = 0
        self.find_pid()

    def find_pid(self) -> None:
        self.pid = self.daemon.json("status")["pid"]

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Call the local API; None if that fails."""
        connection = http.client.HTTPConnection("localhost", timeout=DEADLINE_S)
        try:
            with socket.socket(socket.AF_UNIX) as connection.sock:
                connection.sock.connect(str(self.daemon.socket))
                headers = {"Content-Type": "application/json"}
                connection.request(method, f"/v1/file-transfer{path}", json.dumps(body) if body else None, headers)
                answer = connection.getresponse()
                return json.loads(answer.read()) if answer.status < 300 else None
        except (OSError, http.client.HTTPException):
            return None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        deadline = time.monotonic() + DEADLINE_S
        while Path(f"/proc/{self.pid}").exists() and self._state() != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def _state(self) -> str:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return "Z"

    def start(self) -> None:
        self.daemon.start()
        self.find_pid()

    def transfer(self, transfer_id: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.ask("GET", f"/transfers/{transfer_id}")
        return found


def cut(*nodes: Node) -> None:
    """Reset every connection between the nodes."""
    for node in nodes:
        for port in ("dport", "sport"):
            subprocess.run(["ss", "-K", "-t", port, "=", f":{node.port}"], check=True, capture_output=True, timeout=60)


def can_cut() -> bool:
    return os.geteuid() == 0 and shutil.which("ss") is not None


def until(reached: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not reached():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node, Path]]:
    home = tmp_path_factory.mktemp("faults")
    downloads = home / "downloads"
    with paired_daemons(home, environment={"SDNET_NODE_DOWNLOADS": str(downloads)}) as (alice, bob):
        alice.run("transfers", "limit", "--up", f"{RATE >> 20}M")
        yield Node(alice), Node(bob), downloads


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    make_source(root, random.Random(SEED))
    return root


def check_visible(downloads: Path, source: Path) -> None:
    """What has its final name is whole."""
    if (downloads / "big.bin").exists():
        assert (downloads / "big.bin").read_bytes() == (source / "big.bin").read_bytes(), "big.bin"
    if (downloads / "tree").exists():
        assert digests(downloads / "tree") == digests(source / "tree")


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_a_transfer_completes_whatever_is_killed_or_cut(
    nodes: tuple[Node, Node, Path], source: Path, moment: int
) -> None:
    alice, bob, downloads = nodes
    chance = random.Random(f"{SEED} {moment}")
    kind = KINDS[moment % len(KINDS)]
    if kind == "link" and not can_cut():
        kind = "both"
    paths = [str(source / "tree"), str(source / "big.bin")]
    chance.shuffle(paths)
    transfer_id = alice.ask("POST", "/transfers", {"device": "bob", "paths": paths})["id"]
    time.sleep(chance.uniform(0, 1.3))  # the moment of the fault; nothing is waited for
    if kind == "link":
        for _ in range(chance.randrange(1, 4)):
            cut(alice, bob)
            time.sleep(chance.uniform(0, 0.4))
    victims = [node for node, name in ((alice, "sender"), (bob, "receiver")) if kind in (name, "both")]
    for victim in victims:
        victim.kill()
    check_visible(downloads, source)
    for victim in victims:
        victim.start()

    def over() -> bool:
        ends = [node.transfer(transfer_id) for node in (alice, bob)]
        assert not any(end and end["state"] in ("failed", "cancelled", "rejected") for end in ends), (kind, ends)
        return all(end is not None and end["state"] == "completed" for end in ends)

    until(over, f"moment {moment} ({kind}): it does not complete")
    until(lambda: sorted(os.listdir(downloads)) == ["big.bin", "tree"], f"left: {os.listdir(downloads)}")
    check_visible(downloads, source)
    shutil.rmtree(downloads)


# Disks that fill up


@asynccontextmanager
async def two(tmp_path: Path, *, min_free_bytes: int = 0) -> AsyncIterator[LinkedNodes]:
    settings = {"plugins": {"file_transfer": {"min_free_bytes": min_free_bytes}}}
    with anyio.fail_after(DEADLINE_S):
        async with linked_nodes(2, plugins=[FileTransferPlugin], home=tmp_path / "home", settings=settings) as nodes:
            yield nodes


def service(node: Any) -> FileTransferService:
    found: FileTransferService = node.get_service(FileTransferService)
    return found


async def finish(node: Any, transfer_id: uuid.UUID) -> Transfer:
    async for transfer in service(node).watch(transfer_id):
        last = transfer
    assert last.state.terminal
    return last


async def wait_for(condition: Callable[[], Any]) -> None:
    with anyio.fail_after(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in a node, which tells nobody
            await anyio.sleep(0.01)


@pytest.mark.anyio
async def test_what_does_not_fit_is_refused_before_a_byte_is_written(small_disks: Any, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(20 << 20))
    async with two(tmp_path) as (a, b):
        small_disks.mount(b.config.downloads_dir, 16 << 20)
        transfer = await service(a).send(b.device_info.id, [tmp_path / "big"])
        done = await finish(a, transfer.id)
        assert done.state is TransferState.REJECTED
        assert "room" in done.reason
        await wait_for(lambda: os.listdir(b.config.downloads_dir) == [])


@pytest.mark.anyio
@pytest.mark.parametrize("small", [False, True])
async def test_a_disk_that_fills_up_pauses_a_transfer_until_there_is_room(
    small_disks: Any, tmp_path: Path, small: bool
) -> None:
    chance = random.Random(SEED)
    root = tmp_path / "sent"
    root.mkdir()
    if small:
        for number in range(2000):
            (root / f"file {number}").write_bytes(chance.randbytes(8192))
    else:
        (root / "big").write_bytes(chance.randbytes(16 << 20))
    async with two(tmp_path) as nodes:
        a, b = nodes
        place = small_disks.mount(b.config.downloads_dir, 32 << 20)
        nodes.link(a, b).bytes_per_s = 8 << 20
        transfer = await service(a).send(b.device_info.id, [root])
        await wait_for(lambda: service(b).transfers() and service(b).transfers()[0].done_bytes > 1 << 20)
        filler = await anyio.to_thread.run_sync(small_disks.fill, place)
        for node in (a, b):
            await wait_for(lambda node=node: "full" in service(node).get(transfer.id).reason)  # type: ignore[misc]
            assert service(node).get(transfer.id).state is TransferState.WAITING
        filler.unlink()
        nodes.link(a, b).bytes_per_s = None
        assert (await finish(a, transfer.id)).state is TransferState.COMPLETED
        assert digests(place / "sent") == digests(root)
        await wait_for(lambda: os.listdir(place) == ["sent"])


# What a cut costs


@pytest.mark.anyio
async def test_after_a_cut_at_half_at_most_8_mib_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 64 << 20
    (tmp_path / "big").write_bytes(random.Random(SEED).randbytes(size))
    on_the_wire = 0
    send_record = PeerStream.send_record

    async def counting(self: PeerStream, data: bytes | bytearray | memoryview) -> None:
        nonlocal on_the_wire
        on_the_wire += len(data)
        await send_record(self, data)

    monkeypatch.setattr(PeerStream, "send_record", counting)
    async with two(tmp_path) as nodes:
        a, b = nodes
        nodes.link(a, b).bytes_per_s = 48 << 20
        transfer = await service(a).send(b.device_info.id, [tmp_path / "big"])
        await wait_for(lambda: service(b).transfers() and service(b).transfers()[0].done_bytes >= size // 2)
        nodes.cut(a, b)
        await wait_for(lambda: service(b).get(transfer.id).state is TransferState.WAITING)
        held = service(b).get(transfer.id).done_bytes
        nodes.heal(a, b)
        await wait_for(lambda: service(b).get(transfer.id).state is not TransferState.WAITING)
        assert (await finish(a, transfer.id)).state is TransferState.COMPLETED
        assert held >= size // 2
        assert on_the_wire <= size + (8 << 20)
        assert (b.config.downloads_dir / "big").read_bytes() == (tmp_path / "big").read_bytes()
