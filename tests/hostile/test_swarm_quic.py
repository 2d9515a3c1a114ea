"""Strangers against the swarm on QUIC: no identity without a key, no memory, no slot, no service denied."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest
import trio

from sdnet_core.errors import ConnectionFailedError
from sdnet_core.swarm.abc import Connected, Disconnected, SwarmStream
from sdnet_core.swarm.libp2p import Libp2pSwarm, SwarmLimits

# isort: split
import trio.lowlevel
from aioquic import tls
from aioquic.quic.packet import QuicErrorCode
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from libp2p.crypto.ed25519 import create_new_key_pair

from sdnet_core.swarm.quic import identity
from sdnet_core.swarm.quic.identity import EXTENSION, Credentials, make_credentials
from tests import real_swarms as swarms
from tests.real_swarms import MIB, QUIC, resident_bytes

from .quic_client import HostileClient, hostile_client, port_of

pytestmark = [pytest.mark.anyio, pytest.mark.libp2p]

MANY = 10_000 if os.environ.get("SDNET_LONG_TESTS") else 2_000


running = partial(swarms.running, QUIC, transports=("quic",))


async def serves(swarm: Libp2pSwarm) -> None:
    """An honest newcomer is served."""
    async with running() as honest:
        with anyio.fail_after(30):
            await honest.dial(swarm.peer_id, swarm.addresses)
            stream = await honest.open_stream(swarm.peer_id, ["/echo/1"])
            await stream.send(b"hello")
            assert await stream.receive() == b"hello"


@asynccontextmanager
async def honest_peer_served(swarm: Libp2pSwarm) -> AsyncIterator[None]:
    """An honest peer goes on being served, and memory does not grow by more than 64 MiB."""
    answers = 0

    async def ping_for_ever() -> None:
        nonlocal answers
        async with running() as honest:
            await honest.dial(swarm.peer_id, swarm.addresses)
            stream = await honest.open_stream(swarm.peer_id, ["/echo/1"])
            while True:
                with anyio.fail_after(30):
                    await stream.send(b"ping")
                    assert await stream.receive() == b"ping"
                answers += 1
                await anyio.sleep(0.01)

    async def some_more(number: int) -> None:
        goal = answers + number
        with anyio.fail_after(60):
            while answers < goal:  # noqa: ASYNC110
                await anyio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ping_for_ever)
        await some_more(3)
        before = resident_bytes()
        yield
        assert resident_bytes() - before <= 64 * MIB
        await some_more(3)
        await serves(swarm)
        nursery.cancel_scope.cancel()


# Who is it?


def certificate(
    signed_key: bytes | None,
    *,
    key: ec.EllipticCurvePrivateKey | None = None,
    signer: ec.EllipticCurvePrivateKey | None = None,
    years: tuple[int, int] = (2000, 2100),
    extra: x509.ExtensionType | None = None,
) -> Credentials:
    import datetime

    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    first, last = (datetime.datetime(year, 1, 1) for year in years)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), first, last)
    if signed_key is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(EXTENSION, signed_key), critical=False)
    if extra is not None:
        builder = builder.add_extension(extra, critical=True)
    return Credentials(builder.sign(signer or key, hashes.SHA256()), key)


def signed_key(public: bytes, signature: bytes) -> bytes:
    return identity._sequence(identity._octets(public) + identity._octets(signature))


def forged() -> Credentials:
    """A victim's public key, and a signature of the impostor's own."""
    key = ec.generate_private_key(ec.SECP256R1())
    victim, impostor = (create_new_key_pair(os.urandom(32)) for _ in range(2))
    signature = impostor.private_key.sign(identity._SIGNED_PREFIX + identity._key_info(key.public_key()))
    return certificate(signed_key(victim.public_key.serialize(), signature), key=key)


def stolen() -> Credentials:
    """The extension of a victim's certificate, in one with a key that the impostor has."""
    victims = make_credentials(create_new_key_pair(os.urandom(32)).private_key).certificate
    extension = victims.extensions.get_extension_for_oid(EXTENSION).value
    assert isinstance(extension, x509.UnrecognizedExtension)
    return certificate(extension.value)


def honest_parts() -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    pair = create_new_key_pair(os.urandom(32))
    signature = pair.private_key.sign(identity._SIGNED_PREFIX + identity._key_info(key.public_key()))
    return key, signed_key(pair.public_key.serialize(), signature)


def honest() -> Credentials:
    key, extension = honest_parts()
    return certificate(extension, key=key)


def expired() -> Credentials:
    key, extension = honest_parts()
    return certificate(extension, key=key, years=(2000, 2001))


def signed_by_another() -> Credentials:
    key, extension = honest_parts()
    return certificate(extension, key=key, signer=ec.generate_private_key(ec.SECP256R1()))


def with_a_demand() -> Credentials:
    key, extension = honest_parts()
    demand = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.53594.9.9"), b"x")
    return certificate(extension, key=key, extra=demand)


def with_something_behind() -> Credentials:
    key, extension = honest_parts()
    return certificate(extension + b"\x00", key=key)


async def test_an_honest_certificate_of_the_same_making_is_taken() -> None:
    """What the next test refuses, it refuses for its fault."""
    async with running() as swarm, hostile_client(swarm, honest()) as client:
        with anyio.fail_after(30):
            assert isinstance(await swarm.events.receive(), Connected)
        assert not client.ended.is_set()


@pytest.mark.parametrize(
    "make",
    [
        forged,
        stolen,
        expired,
        signed_by_another,
        with_a_demand,
        with_something_behind,
        lambda: certificate(None),
        lambda: certificate(b""),
        lambda: certificate(os.urandom(80)),
    ],
)
async def test_a_certificate_that_proves_nothing_is_refused(make: Callable[[], Credentials]) -> None:
    async with running() as swarm, hostile_client(swarm, make()) as client:
        with anyio.fail_after(30):
            await client.ended.wait()
        assert client.error_code == QuicErrorCode.CRYPTO_ERROR + tls.AlertDescription.bad_certificate
        assert swarm.host.get_connected_peers() == []
        await serves(swarm)


@pytest.mark.parametrize("how", ["none", "two", "not-its-key"])
async def test_a_client_must_show_one_certificate_and_have_its_key(how: str) -> None:
    def prepare(context: Any) -> None:
        if how == "none":
            context.certificate = None
        elif how == "two":
            context.certificate_chain = [context.certificate]
        else:
            context.certificate_private_key = ec.generate_private_key(ec.SECP256R1())

    async with running() as swarm, hostile_client(swarm, prepare=prepare) as client:
        with anyio.fail_after(30):
            await client.ended.wait()
        assert client.error_code is not None
        assert client.error_code > QuicErrorCode.CRYPTO_ERROR
        assert swarm.host.get_connected_peers() == []
        await serves(swarm)


async def test_a_listener_that_is_somebody_else_is_not_connected_to() -> None:
    async with running() as impostor, running() as dialler:
        victim = create_new_key_pair(os.urandom(32))
        from libp2p.peer.id import ID

        with pytest.raises(ConnectionFailedError, match="another peer answered"):
            await dialler.dial(str(ID.from_pubkey(victim.public_key)), impostor.addresses)
        assert not impostor.is_connected(dialler.peer_id)
        with anyio.move_on_after(0.5):
            pytest.fail(f"the impostor was told of {await impostor.events.receive()}")


# How much does it cost?


async def start_streams(client: HostileClient, numbers: range, data: bytes, *, end: bool = False) -> None:
    for number in numbers:
        client.quic.send_stream_data(4 * number, data, end_stream=end)
        if number % 100 == 99:
            await client.flush()
            await trio.lowlevel.checkpoint()


async def test_10000_streams_opened_ends_the_connection() -> None:
    async with running() as swarm, honest_peer_served(swarm), hostile_client(swarm) as client:
        await client.connected.wait()
        client.boast()
        await start_streams(client, range(10_000), b"x")
        with anyio.fail_after(60):
            await client.ended.wait()
        assert client.error_code == QuicErrorCode.STREAM_LIMIT_ERROR


async def test_many_streams_opened_and_reset_within_the_limits() -> None:
    handlers = most = 0

    async def endless(stream: SwarmStream) -> None:
        nonlocal handlers, most
        handlers += 1
        most = max(most, handlers)
        try:
            await anyio.sleep_forever()
        finally:
            handlers -= 1

    start = b"\x13/multistream/1.0.0\n\x0b/endless/1\n"
    async with running() as swarm:
        swarm.set_stream_handler("/endless/1", endless)
        async with honest_peer_served(swarm), hostile_client(swarm) as client:
            await client.connected.wait()
            number = 100
            await start_streams(client, range(number), start)
            with anyio.fail_after(120):
                while handlers < number:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                while number < MANY and not client.ended.is_set():
                    for _ in range(50):
                        if number < client.quic._remote_max_streams_bidi:
                            client.quic.send_stream_data(4 * number, start)
                            client.quic.stop_stream(4 * number, 0)
                            await client.flush()
                            client.quic.reset_stream(4 * number, 0)
                            number += 1
                    await client.flush()
                    await trio.sleep(0.001)
            assert number == MANY
        assert 100 <= most <= 256


async def test_a_window_overrun_ends_the_connection() -> None:
    async def stalled(stream: SwarmStream) -> None:
        await anyio.sleep_forever()

    async with running() as swarm:
        swarm.set_stream_handler("/stalled/1", stalled)
        async with honest_peer_served(swarm), hostile_client(swarm) as client:
            await client.connected.wait()
            client.quic.send_stream_data(0, b"\x13/multistream/1.0.0\n\x0b/stalled/1\n")
            client.boast()
            client.quic.send_stream_data(0, bytes(2 * MIB))
            with anyio.fail_after(60):
                await client.ended.wait()
            assert client.error_code == QuicErrorCode.FLOW_CONTROL_ERROR


async def test_a_gap_at_the_end_of_every_window_is_no_more_than_the_windows() -> None:
    """A byte at the end of a window makes the receiver set aside all of what is missing before it."""
    async with running() as swarm, honest_peer_served(swarm), hostile_client(swarm) as client:
        await client.connected.wait()
        quic = client.quic
        for number in range(256):
            quic.send_stream_data(4 * number, b"")
            sender = quic._streams[4 * number].sender
            window = quic._streams[4 * number].max_stream_data_remote
            sender.highest_offset = sender._buffer_start = sender._buffer_stop = window - 1
            quic.send_stream_data(4 * number, b"x")
            await client.flush()
        with anyio.move_on_after(2):
            await client.ended.wait()


def unacknowledged(stream: Any) -> bool:
    return bool(stream.sender._buffer_stop > stream.sender._buffer_start)


async def test_all_streams_filled_and_never_read() -> None:
    async def stalled(stream: SwarmStream) -> None:
        await anyio.sleep_forever()

    start = b"\x13/multistream/1.0.0\n\x0b/stalled/1\n"
    async with running() as swarm:
        swarm.set_stream_handler("/stalled/1", stalled)
        async with honest_peer_served(swarm), hostile_client(swarm) as client:
            await client.connected.wait()
            block = start + bytes(128 * 1024 - len(start))
            await start_streams(client, range(64), block)
            with anyio.fail_after(120):
                while any(unacknowledged(stream) for stream in client.quic._streams.values()):  # noqa: ASYNC110
                    await anyio.sleep(0.05)
            assert not client.ended.is_set()


async def test_handshakes_that_are_never_finished_keep_nobody_out() -> None:
    limits = SwarmLimits(max_handshakes=16)
    async with running(limits=limits) as swarm, honest_peer_served(swarm):
        socks = []
        try:
            for _ in range(300):
                # Only the first packet of each; what comes back is not even read.
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                socks.append(sock)
                sock.connect(("127.0.0.1", port_of(swarm)))
                sock.send(first_packet())
                await trio.lowlevel.checkpoint()
            network: Any = swarm.host.get_network()
            await serves(swarm)
            # Forged addresses cost no handshake: only a quarter of the places goes to those that have proved nothing,
            # and the two honest peers may be at theirs.
            assert len(network.handshakes._running) <= 4 + 2
            assert len(network.handshakes._waiting) == 0
        finally:
            for sock in socks:
                sock.close()


def first_packet() -> bytes:
    from aioquic.quic.connection import QuicConnection

    from sdnet_core.swarm.quic.core import make_configuration

    credentials = make_credentials(create_new_key_pair(os.urandom(32)).private_key)
    quic = QuicConnection(configuration=make_configuration(credentials, is_client=True))
    quic.connect("peer", trio.current_time())
    return b"".join(data for data, _ in quic.datagrams_to_send(trio.current_time())[:1])


async def test_a_forged_address_is_sent_no_more_than_three_times_as_much() -> None:
    async with running() as swarm:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(("127.0.0.1", port_of(swarm)))
            packet = first_packet()
            sock.send(packet)
            received = 0
            # Repeats of the handshake's packets would come in this time.
            with anyio.move_on_after(3):
                while True:
                    await trio.lowlevel.wait_readable(sock.fileno())
                    received += len(sock.recv(65536))
            assert 0 < received <= 3 * len(packet)
        await serves(swarm)


async def test_rubbish_is_dropped() -> None:
    async with running() as swarm, honest_peer_served(swarm):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", port_of(swarm)))
            good = first_packet()
            for size in (0, 1, 5, 20, 100, 1199, 1200, 1500, 9000):
                for _ in range(20):
                    sock.send(os.urandom(size))
                    sock.send(bytes([0xC0 | os.urandom(1)[0] % 16, 0, 0, 0, 1]) + os.urandom(size))
                    sock.send(good[:size])
                    flipped = bytearray(good)
                    flipped[os.urandom(2)[0] * 4 % len(good)] ^= 1 << os.urandom(1)[0] % 8
                    sock.send(flipped)
                await trio.lowlevel.checkpoint()
        assert len(swarm.host.get_connected_peers()) == 1


async def test_an_unknown_version_is_told_which_one_there_is() -> None:
    async with running() as swarm:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(("127.0.0.1", port_of(swarm)))
            sock.send(bytes([0xC0]) + b"\x0a\x0a\x0a\x0a" + b"\x08" + bytes(8) + b"\x08" + bytes(8) + bytes(1200))
            with anyio.fail_after(10):
                await trio.lowlevel.wait_readable(sock.fileno())
            answer = sock.recv(65536)
        assert answer[1:5] == bytes(4)
        assert answer.endswith((1).to_bytes(4, "big"))


async def test_connections_that_have_gone_leave_nothing() -> None:
    async with running() as swarm, running() as a:
        for number in range(60):
            if number == 20:
                gc.collect()
                descriptors = len(os.listdir("/proc/self/fd"))
            await a.dial(swarm.peer_id, swarm.addresses, timeout_s=60)
            await (a.hang_up(swarm.peer_id) if number % 2 else swarm.hang_up(a.peer_id))
            with anyio.fail_after(60):
                for end in (a, swarm):
                    assert [type(await end.events.receive()) for _ in range(2)] == [Connected, Disconnected]
        (listener,) = swarm.host.get_network().listeners.values()
        sock: Any = listener._socket
        assert not sock.connections
        assert len(sock._farewells) <= 256
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 2
