"""Real multicast DNS, on the loopback interface only."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator

import anyio
import anyio.to_thread
import pytest
from zeroconf import DNSIncoming, DNSPointer, DNSText  # type: ignore[attr-defined]

from sdnet_core.clock import SystemClock, SystemRandomness
from sdnet_core.discovery.candidates import Candidate, CandidateStream, Discovery
from sdnet_core.discovery.mdns import MdnsDiscovery
from sdnet_core.discovery.mdns_messages import SERVICE
from sdnet_core.identity import NetworkIdentity

pytestmark = pytest.mark.anyio

GROUP = ("224.0.0.251", 5353)
LOOPBACK = "127.0.0.1"
PTR, TXT = 12, 16


def new_peer_id() -> str:
    return NetworkIdentity.generate(SystemRandomness()).peer_id


class Node:
    """One user of mDNS."""

    def __init__(self) -> None:
        self.peer_id = new_peer_id()
        self.mdns = MdnsDiscovery(self.peer_id, SystemClock(), SystemRandomness(), interfaces=[LOOPBACK])
        self.discovery = Discovery([self.mdns], SystemClock(), peer_id=self.peer_id)


@contextlib.asynccontextmanager
async def node(*addresses: str) -> AsyncIterator[Node]:
    one = Node()
    one.discovery.set_addresses(addresses)
    async with one.discovery.run():
        yield one


@contextlib.asynccontextmanager
async def hearing(one: Node, peer_id: str) -> AsyncIterator[CandidateStream]:
    async with one.discovery.subscribe(lambda candidate: candidate.peer_id == peer_id) as candidates:
        yield candidates


async def until(candidates: CandidateStream, condition: Callable[[Candidate], bool]) -> Candidate:
    with anyio.fail_after(10):
        async for candidate in candidates:
            if condition(candidate):
                return candidate
    raise AssertionError("discovery has ended")


async def eventually(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - nothing tells of what is lost
            await anyio.sleep(0.01)


@pytest.fixture
def stranger() -> Iterator[socket.socket]:
    """Another implementation's socket: it sends to the group from the loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK))
        sock.bind((LOOPBACK, 0))
        sock.settimeout(0.2)
        yield sock


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Another implementation's socket: it hears the group on the loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(GROUP)
        sock.setsockopt(
            socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP[0]) + socket.inet_aton(LOOPBACK)
        )
        sock.settimeout(0.2)
        yield sock


def name(text: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in text.rstrip(".").split(".")) + b"\0"


def record(owner: str, kind: int, data: bytes, ttl: int = 120) -> bytes:
    return name(owner) + struct.pack(">HHIH", kind, 1, ttl, len(data)) + data


def js_announcement(peer_id: str, *addresses: str, ttl: int = 120) -> bytes:
    """PTR and one TXT record per address in the answer section, as js-libp2p sends it."""
    instance = f"js0123456789abcdefghijklmnopqrstuvwxyz.{SERVICE}"
    answers = [record(SERVICE, PTR, name(instance), ttl)]
    for address in addresses:
        string = f"dnsaddr={address}/p2p/{peer_id}".encode()
        answers.append(record(instance, TXT, bytes([len(string)]) + string, ttl))
    return struct.pack(">6H", 0, 0x8400, 0, len(answers), 0, 0) + b"".join(answers)


def question(query_id: int = 0, service: str = SERVICE) -> bytes:
    return struct.pack(">6H", query_id, 0, 1, 0, 0, 0) + name(service) + struct.pack(">HH", PTR, 1)


async def read(sock: socket.socket, wanted: Callable[[DNSIncoming], bool]) -> DNSIncoming:
    """The first packet that is wanted."""

    def receive() -> bytes | None:
        try:
            return sock.recv(9000)
        except TimeoutError:
            return None

    with anyio.fail_after(10):
        while True:
            data = await anyio.to_thread.run_sync(receive)
            if data is not None and wanted(packet := DNSIncoming(data)):
                return packet


def tells_of(packet: DNSIncoming, peer_id: str) -> bool:
    return any(isinstance(answer, DNSText) and peer_id.encode() in answer.text for answer in packet.answers())


async def test_two_nodes_find_each_other_in_either_order_and_soon() -> None:
    async with node("/ip4/127.0.0.1/tcp/4001", "/ip4/192.0.2.1/tcp/4001") as first:
        started = anyio.current_time()
        async with node("/ip4/127.0.0.1/tcp/4002") as second:
            async with hearing(first, second.peer_id) as candidates:
                candidate = await until(candidates, lambda _: True)
                assert candidate.addresses == ("/ip4/127.0.0.1/tcp/4002",)
                assert candidate.source == "mdns"
            async with hearing(second, first.peer_id) as candidates:
                candidate = await until(candidates, lambda _: True)
                assert candidate.addresses == ("/ip4/127.0.0.1/tcp/4001", "/ip4/192.0.2.1/tcp/4001")
            assert anyio.current_time() - started < 3
            assert not first.discovery.known(first.peer_id)
        await eventually(lambda: not first.discovery.known(second.peer_id))


async def test_changed_addresses_and_tags_are_heard() -> None:
    async with node("/ip4/127.0.0.1/tcp/4001") as first, node() as second, hearing(second, first.peer_id) as heard:
        await until(heard, lambda candidate: not candidate.tags)
        token = first.discovery.advertise(b"\x00 secret? no\xff")
        await until(heard, lambda candidate: candidate.tags == {b"\x00 secret? no\xff"})
        first.discovery.withdraw(token)
        await until(heard, lambda candidate: not candidate.tags)
        first.discovery.set_addresses(["/ip4/127.0.0.1/tcp/5001"])
        await until(heard, lambda candidate: "/ip4/127.0.0.1/tcp/5001" in candidate.addresses)
        await eventually(lambda: second.discovery.known(first.peer_id)[0].addresses == ("/ip4/127.0.0.1/tcp/5001",))
        first.discovery.set_addresses([])
        await eventually(lambda: not second.discovery.known(first.peer_id))


async def test_a_node_without_addresses_is_silent_but_hears() -> None:
    async with node() as silent, node("/ip4/127.0.0.1/tcp/1") as other, hearing(silent, other.peer_id) as heard:
        await until(heard, lambda _: True)
        assert not other.discovery.known(silent.peer_id)


async def test_js_libp2p_is_understood(stranger: socket.socket) -> None:
    peer_id = new_peer_id()
    packet = js_announcement(peer_id, "/ip4/127.0.0.1/tcp/9", "/ip4/127.0.0.1/tcp/10/ws", "/ip4/0.0.0.0/tcp/9")
    async with node() as one, hearing(one, peer_id) as heard, anyio.create_task_group() as group:
        group.start_soon(keep_sending, stranger, packet)
        candidate = await until(heard, lambda _: True)
        group.cancel_scope.cancel()
        assert candidate.addresses == ("/ip4/127.0.0.1/tcp/9", "/ip4/127.0.0.1/tcp/10/ws")
        stranger.sendto(js_announcement(peer_id, ttl=0), GROUP)
        await eventually(lambda: not one.discovery.known(peer_id))


async def test_a_question_is_answered_with_pointer_and_text(stranger: socket.socket, listener: socket.socket) -> None:
    async with node("/ip4/127.0.0.1/tcp/4001", "/ip6/::1/tcp/4001") as one:
        for _ in range(2):
            # The two announcements at the start, which nobody asked for.
            await read(listener, lambda packet: tells_of(packet, one.peer_id))
        stranger.sendto(question(query_id=513), GROUP)
        multicast = await read(listener, lambda packet: tells_of(packet, one.peer_id))
        unicast = await read(stranger, lambda packet: tells_of(packet, one.peer_id))
    assert (unicast.id, len(unicast.questions)) == (513, 1)
    assert (multicast.id, multicast.num_questions, multicast.num_answers, multicast.num_additionals) == (0, 0, 1, 1)
    pointer, text = multicast.answers()
    assert isinstance(pointer, DNSPointer)
    assert isinstance(text, DNSText)
    assert pointer.name == SERVICE
    assert pointer.alias == text.name
    assert one.peer_id not in pointer.alias
    for ip in ("/ip4/127.0.0.1", "/ip6/::1"):
        assert f"dnsaddr={ip}/tcp/4001/p2p/{one.peer_id}".encode() in text.text


async def test_the_services_are_listed(stranger: socket.socket, listener: socket.socket) -> None:
    async with node("/ip4/127.0.0.1/tcp/4001") as one, anyio.create_task_group() as group:
        assert one.peer_id
        group.start_soon(keep_sending, stranger, question(service="_services._dns-sd._udp.local."), 0.2)
        await read(
            listener,
            lambda packet: any(isinstance(a, DNSPointer) and a.alias == SERVICE for a in packet.answers()),
        )
        group.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def flood(source: str, per_second: int = 10_000) -> AsyncIterator[None]:
    """Damaged announcements and noise, from one address of this machine."""
    dice = random.Random(5)
    template = js_announcement(new_peer_id(), "/ip4/127.0.0.1/tcp/9")

    async def send() -> None:
        while True:
            for _ in range(per_second // 400):
                packet = bytearray(template)
                for _ in range(dice.randrange(8)):
                    packet[dice.randrange(len(packet))] = dice.randrange(256)
                sock.sendto(bytes(packet[: dice.randrange(1, len(packet) + 1)]), GROUP)
                sock.sendto(dice.randbytes(dice.randrange(1, 1400)), GROUP)
            await anyio.sleep(0.005)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK))
        sock.bind((source, 0))
        async with anyio.create_task_group() as group:
            group.start_soon(send)
            yield
            group.cancel_scope.cancel()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a whole network of loopback addresses")
async def test_peers_are_found_while_another_sender_floods() -> None:
    async with flood("127.0.0.2"), node("/ip4/127.0.0.1/tcp/1") as first, node("/ip4/127.0.0.1/tcp/2") as second:
        for one, other in ((first, second), (second, first)):
            async with hearing(one, other.peer_id) as heard:
                await until(heard, lambda _: True)
            assert len(one.discovery.peers()) <= 128


async def test_peers_are_found_after_a_flood_from_their_own_address() -> None:
    async with node("/ip4/127.0.0.1/tcp/4001") as first:
        async with flood(LOOPBACK):
            await anyio.sleep(0.3)
        async with node("/ip4/127.0.0.1/tcp/4002") as second:
            for one, other in ((first, second), (second, first)):
                async with hearing(one, other.peer_id) as heard:
                    await until(heard, lambda _: True)


CHILD = """
import sys
import anyio
from sdnet_core.clock import SystemClock, SystemRandomness
from sdnet_core.discovery.candidates import Discovery
from sdnet_core.discovery.mdns import MdnsDiscovery

async def main(peer_id, address, wanted):
    mdns = MdnsDiscovery(peer_id, SystemClock(), SystemRandomness(), interfaces=["127.0.0.1"])
    discovery = Discovery([mdns], SystemClock(), peer_id=peer_id)
    discovery.set_addresses([address])
    async with discovery.run(), discovery.subscribe(lambda c: c.peer_id == wanted) as candidates:
        print(*(await candidates.receive()).addresses, flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)

anyio.run(main, *sys.argv[1:4], backend=sys.argv[4])
"""


async def test_another_process_is_found_and_its_end_is_noticed(anyio_backend: str) -> None:
    peer_id = new_peer_id()
    async with node("/ip4/127.0.0.1/tcp/4001") as one, hearing(one, peer_id) as heard:
        arguments = [peer_id, "/ip4/127.0.0.1/tcp/4002", one.peer_id, anyio_backend]
        async with await anyio.open_process(
            [sys.executable, "-c", CHILD, *arguments],
            stdin=subprocess.PIPE,
            stderr=None,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        ) as child:
            assert (await until(heard, lambda _: True)).addresses == ("/ip4/127.0.0.1/tcp/4002",)
            assert child.stdin is not None
            assert child.stdout is not None
            with anyio.fail_after(10):
                assert (await child.stdout.receive()).split() == [b"/ip4/127.0.0.1/tcp/4001"]
            await child.stdin.aclose()
            await eventually(lambda: not one.discovery.known(peer_id))


async def test_an_interface_that_is_not_there_is_no_failure() -> None:
    peer_id = new_peer_id()
    mdns = MdnsDiscovery(peer_id, SystemClock(), SystemRandomness(), interfaces=["192.0.2.77"])
    discovery = Discovery([mdns], SystemClock(), peer_id=peer_id)
    async with discovery.run():
        await anyio.sleep(0.05)


def test_an_interface_is_named_by_its_address() -> None:
    with pytest.raises(ValueError, match="eth0"):
        MdnsDiscovery(new_peer_id(), SystemClock(), SystemRandomness(), interfaces=["eth0"])


async def keep_sending(sock: socket.socket, packet: bytes, every_s: float = 0.05) -> None:
    while True:
        sock.sendto(packet, GROUP)
        await anyio.sleep(every_s)
