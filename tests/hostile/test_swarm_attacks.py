"""Strangers against the swarm on libp2p: no identity without a key, no memory, no slot, no service denied."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import anyio
import pytest
import trio

from sdnet_core.swarm.abc import Connected, SwarmStream
from sdnet_core.swarm.libp2p import Libp2pSwarm, SwarmLimits

# isort: split
import libp2p
from libp2p.crypto.ed25519 import Ed25519PrivateKey, create_new_key_pair
from libp2p.crypto.keys import KeyPair, PublicKey
from libp2p.custom_types import TProtocol
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.peerinfo import PeerInfo
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.security.secio import transport as secio
from multiaddr import Multiaddr

from tests import real_swarms as swarms
from tests.real_swarms import MIB, TCP, raw_socket, resident_bytes

pytestmark = [pytest.mark.anyio, pytest.mark.libp2p]

running = partial(swarms.running, TCP)


async def serves(swarm: Libp2pSwarm) -> None:
    """An honest peer is served within two seconds."""
    async with running() as honest:
        with anyio.fail_after(2):
            await honest.dial(swarm.peer_id, swarm.addresses)
            stream = await honest.open_stream(swarm.peer_id, ["/echo/1"])
            await stream.send(b"hello")
            assert await stream.receive() == b"hello"


def line(text: str) -> bytes:
    data = text.encode() + b"\n"
    return bytes([len(data)]) + data


class ForgedKey(Ed25519PrivateKey):
    """An impostor's private key that names a victim's public key: all that an impostor has of it."""

    def __init__(self, own: Any, victim: PublicKey) -> None:
        super().__init__(own.impl)
        self._victim = victim

    def get_public_key(self) -> PublicKey:
        return self._victim


def victims_identity() -> KeyPair:
    """What an impostor can make of a victim's public key."""
    victim, impostor = create_new_key_pair(os.urandom(32)), create_new_key_pair(os.urandom(32))
    return KeyPair(ForgedKey(impostor.private_key, victim.public_key), victim.public_key)


@pytest.mark.parametrize("protocol", ["/plaintext/2.0.0", "/secio/1.0.0", "/tls/1.0.0"])
async def test_only_noise_is_agreed_to(protocol: str) -> None:
    async with running() as swarm:
        async with await raw_socket(swarm) as stream:
            await stream.send_all(line("/multistream/1.0.0") + line(protocol) + line("ls"))
            expected = line("/multistream/1.0.0") + line("na")
            received = b""
            with anyio.fail_after(5):
                while b"/noise" not in received:
                    received += bytes(await stream.receive_some())
            assert received.startswith(expected)
            assert protocol.encode() not in received
        await serves(swarm)


@pytest.mark.parametrize("attack", ["plaintext", "secio"])
async def test_an_impostor_without_the_key_is_refused(attack: str) -> None:
    """The attack that a host made by `libp2p.new_host()` falls for, and ours does not."""
    stolen = victims_identity()
    security: dict[TProtocol, Any] = (
        {TProtocol(PLAINTEXT_PROTOCOL_ID): InsecureTransport(stolen)}
        if attack == "plaintext"
        else {TProtocol(secio.ID): secio.Transport(stolen)}
    )
    async with running() as swarm:
        impostor = libp2p.new_host(key_pair=stolen, sec_opt=security)
        target = PeerInfo(swarm.host.get_id(), [Multiaddr(address) for address in swarm.addresses])
        async with impostor.run([]):
            with pytest.raises(Exception, match=r"(?i)unable to connect|fail|no addresses"):
                await impostor.connect(target)
        assert not swarm.is_connected(str(impostor.get_id()))
        assert swarm.host.get_connected_peers() == []
        await serves(swarm)


async def test_the_plaintext_attack_is_a_real_one() -> None:
    """The same impostor is taken for the victim by a host that offers plaintext: the test above means something."""
    stolen = victims_identity()
    security = {TProtocol(PLAINTEXT_PROTOCOL_ID): InsecureTransport(stolen)}
    listener = libp2p.new_host(key_pair=create_new_key_pair(os.urandom(32)))
    impostor = libp2p.new_host(key_pair=stolen, sec_opt=security)
    async with listener.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        async with impostor.run([]):
            await impostor.connect(PeerInfo(listener.get_id(), listener.get_addrs()))
            with anyio.fail_after(5):
                while impostor.get_id() not in listener.get_connected_peers():  # noqa: ASYNC110
                    await anyio.sleep(0.01)
            await impostor.disconnect(listener.get_id())


async def test_endless_lengths_before_authentication_cost_no_memory() -> None:
    async with running() as swarm:
        before = resident_bytes()
        for _ in range(3):
            async with await raw_socket(swarm) as stream:
                await stream.send_all(b"\xff\xff\xff\xff\x07")
                with anyio.move_on_after(5) as scope:
                    try:
                        for _ in range(256):
                            await stream.send_all(bytes(MIB))
                    except trio.BrokenResourceError:
                        pass
                assert not scope.cancelled_caught
        assert resident_bytes() - before < 64 * MIB
        await serves(swarm)


async def test_connections_that_say_nothing_are_few_and_end() -> None:
    limits = SwarmLimits(max_handshakes=8, handshake_timeout_s=1.0)
    async with running(limits=limits) as swarm:
        silent = [await raw_socket(swarm) for _ in range(40)]
        greeted = 0

        async def is_greeted(stream: trio.SocketStream) -> None:
            nonlocal greeted
            greeted += bool(await stream.receive_some())

        with anyio.move_on_after(0.1):
            async with trio.open_nursery() as nursery:
                for stream in silent:
                    nursery.start_soon(is_greeted, stream)
        # Handshakes begin with a greeting. The others wait: there are not more at a time.
        assert 0 < greeted <= 8
        with anyio.fail_after(10):
            for stream in silent:
                while await stream.receive_some():
                    pass
        for stream in silent:
            await stream.aclose()
        await serves(swarm)


async def test_rubbish_on_the_port_and_on_every_protocol() -> None:
    async with running() as swarm:
        for rubbish in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(1000), b"\x00" * 500, line("/multistream/1.0.0") * 50):
            async with await raw_socket(swarm) as stream:
                await stream.send_all(rubbish)
        async with running() as stranger:
            await stranger.dial(swarm.peer_id, swarm.addresses)
            for protocol in ("/echo/1", "/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/ping/1.0.0"):
                garbage = await stranger.open_stream(swarm.peer_id, [protocol])
                try:
                    await garbage.send(os.urandom(5000))
                    await garbage.send_eof()
                except anyio.BrokenResourceError:
                    pass
                await garbage.aclose()
        await serves(swarm)


async def test_a_stranger_cannot_hold_more_streams_than_allowed() -> None:
    started = 0

    async def endless(stream: SwarmStream) -> None:
        nonlocal started
        started += 1
        await anyio.sleep_forever()

    async with running(limits=SwarmLimits(max_inbound_streams=10)) as swarm, running() as stranger:
        swarm.set_stream_handler("/endless/1", endless)
        await stranger.dial(swarm.peer_id, swarm.addresses)
        refused = 0
        for _ in range(50):
            try:
                await stranger.open_stream(swarm.peer_id, ["/endless/1"])
            except Exception:
                refused += 1
        assert started <= 10
        assert refused >= 40
        await serves(swarm)


async def test_a_peer_that_proves_another_key_is_hung_up_on() -> None:
    """Noise with a payload signed by another key than the one it names."""
    async with running() as swarm:
        from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key
        from libp2p.security.noise.transport import PROTOCOL_ID, Transport
        from libp2p.transport.upgrader import TransportUpgrader

        noise = Transport(victims_identity(), create_noise_key().private_key)
        upgrader = TransportUpgrader({PROTOCOL_ID: noise}, {})
        raw = RawConnection(TrioTCPStream(await raw_socket(swarm)), True)
        with anyio.fail_after(5):
            secured = await upgrader.upgrade_security(raw, True, swarm.host.get_id())
            with pytest.raises(Exception, match=r"(?i)closed|incomplete|reset"):
                await secured.read(1)
        await raw.close()
        assert swarm.host.get_connected_peers() == []
        await serves(swarm)


async def test_a_flood_of_connections_while_a_peer_is_served() -> None:
    async with running(limits=SwarmLimits(max_connections=20)) as swarm, running() as friend:
        await friend.dial(swarm.peer_id, swarm.addresses)
        assert isinstance(await swarm.events.receive(), Connected)
        stream = await friend.open_stream(swarm.peer_id, ["/echo/1"])

        async def knock() -> None:
            try:
                async with await raw_socket(swarm) as knocking:
                    await knocking.send_all(line("/multistream/1.0.0"))
                    await knocking.receive_some()
            except OSError:
                pass

        async with trio.open_nursery() as nursery:
            for _ in range(300):
                nursery.start_soon(knock)
            for number in range(50):
                with anyio.fail_after(2):
                    await stream.send(str(number).encode())
                    assert await stream.receive() == str(number).encode()
