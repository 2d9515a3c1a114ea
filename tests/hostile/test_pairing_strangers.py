"""Strangers who try to pair with wrong codes cost bounded memory and keep nobody out, over real libp2p.

`nox -s pairing_hostile` makes 1,000 attempts from 50 strangers; without it fewer are made.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest
import trio

from sdnet_core import NetworkIdentity, PeerStream
from sdnet_core.errors import NetworkingError
from sdnet_core.swarm.libp2p import Libp2pSwarm
from sdnet_core.wire import decode, encode
from sdnet_pairing import PairingCode
from sdnet_pairing.machine import PURPOSE, JoinerMachine
from sdnet_pairing.messages import MAX_MESSAGE_BYTES, Refusal
from sdnet_pairing.steps import LocalSide, Send, Start
from tests.e2e.conftest import Node

pytestmark = [pytest.mark.anyio, pytest.mark.libp2p]

LONG = bool(os.environ.get("SDNET_LONG_TESTS"))
STRANGERS, ATTEMPTS = (50, 20) if LONG else (12, 5)
MAX_GROWTH_MIB = 64.0
PROTOCOL = "/sdnet/pairing/1"


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    """The device that shows a code, and the honest one that will type it, each a process."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    both = tuple(Node(tmp_path / name, runtime, name, {}) for name in ("victim", "honest"))
    for node in both:
        node.home.mkdir()
        node.start()
    yield both  # type: ignore[misc]
    for node in both:
        if node.pid is not None:
            node.kill9()


def memory_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) / 1024


def request(identity: NetworkIdentity, target: str, code: PairingCode, chance: random.Random) -> bytes:
    """What a joiner with a code says first."""
    side = LocalSide(
        device=identity.device_info(uuid.UUID(int=1, version=4), "stranger", "0"),
        sign=lambda message: identity.sign(PURPOSE, message),
        random_bytes=chance.randbytes,
    )
    (command,) = JoinerMachine(side, target, code.keys()).handle(Start())
    assert isinstance(command, Send)
    return encode(command.message)


async def attempt(swarm: Libp2pSwarm, victim: str, addresses: list[str], identity: NetworkIdentity, n: int) -> str:
    """One wrong attempt; gives what came of it."""
    chance = random.Random(f"{identity.peer_id} {n}")
    await swarm.dial(victim, addresses)
    stream = PeerStream(await swarm.open_stream(victim, [PROTOCOL]), None)
    messages = stream.messages(max_bytes=MAX_MESSAGE_BYTES)
    try:
        match n % 5:
            case 0:  # a code that nobody shows
                await messages.send_bytes(request(identity, victim, PairingCode(chance.randbytes(16)), chance))
            case 1:  # garbage
                await messages.send_bytes(chance.randbytes(chance.randrange(1, 4096)))
            case 2:  # longer than anything may be
                await stream.send(b"\xff\xff\xff\x7f" + chance.randbytes(1024))
            case 3:  # begun and never ended
                await stream.send(b"\x80")
                return "held"
            case 4:  # a request for another device
                await messages.send_bytes(request(identity, identity.peer_id, PairingCode(bytes(16)), chance))
        with anyio.fail_after(30):
            assert decode(await messages.receive_bytes(), Refusal) == Refusal()
        return "refused"
    finally:
        if n % 5 != 3:
            await stream.reset()


async def strangers(victim: str, addresses: list[str], outcomes: list[str]) -> None:
    """Many strangers at the same time, each with a key of its own; what they hold open stays open until cancelled."""

    async def one(number: int) -> None:
        identity = NetworkIdentity(random.Random(number).randbytes(32))
        swarm = Libp2pSwarm(identity.seed)
        async with swarm.run():
            for n in range(number, number + ATTEMPTS):
                try:
                    outcomes.append(await attempt(swarm, victim, addresses, identity, n))
                except (NetworkingError, anyio.BrokenResourceError, anyio.EndOfStream, TimeoutError):
                    outcomes.append("cut off")  # it made room for a newer one
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for number in range(STRANGERS):
            nursery.start_soon(one, number)


async def test_wrong_attempts_of_many_strangers_leave_an_honest_joiner_able_to_pair(nodes: tuple[Node, Node]) -> None:
    victim, honest = nodes
    showing = victim.popen("pair", "generate", "--auto-accept", "--json")
    assert showing.stdout is not None
    shown = json.loads(await anyio.to_thread.run_sync(showing.stdout.readline))
    status = victim.json("status")
    assert victim.pid is not None
    outcomes: list[str] = []
    before = memory_mib(victim.pid)
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(strangers, status["peer_id"], status["addresses"], outcomes)
        with anyio.fail_after(600):
            while len(outcomes) < STRANGERS * ATTEMPTS // 2:  # noqa: ASYNC110 - in the thick of it
                await anyio.sleep(0.05)
        # Half of them are still trying, and what the others hold open is still held.
        joined = await anyio.to_thread.run_sync(
            lambda: subprocess.run(
                [sys.executable, "-m", "sdnet_core.cli", "pair", "join", "-", "--timeout", "120"],
                env=honest.environ,
                input=shown["code"],
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
        )
        assert joined.returncode == 0, joined.stderr + victim.log()[-3000:]
        with anyio.fail_after(600):
            while len(outcomes) < STRANGERS * ATTEMPTS:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        grown = memory_mib(victim.pid) - before
        nursery.cancel_scope.cancel()
    out, err = await anyio.to_thread.run_sync(lambda: showing.communicate(timeout=60))
    assert showing.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["state"] == "completed"
    assert outcomes.count("refused") > 0
    assert len(victim.json("devices")) == 1
    assert grown < MAX_GROWTH_MIB, f"{grown:.1f} MiB"
    sys.stdout.write(
        f"\n{len(outcomes)} attempts of {STRANGERS} strangers: {outcomes.count('refused')} refused, "
        f"{outcomes.count('held')} held open, {outcomes.count('cut off')} cut off; {grown:.1f} MiB more\n"
    )
