"""A public node that lies, as a process: ``lying_node.py LISTEN``.

It says its address first. Each line on its standard input names the lie to tell from then on (an empty one: none; with
``forgets`` it forgets all records instead), and is answered as JSON: how often which lie was told so far, how many
records it has taken, and how many cards are among them that were not taken back. It ends with its input.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence

import anyio
import anyio.to_thread
import msgspec

from sdnet_core.clock import SystemClock
from sdnet_core.discovery.dht_client import DhtClient
from sdnet_core.discovery.dht_records import Record
from sdnet_core.discovery.dht_server import DhtServer
from sdnet_core.discovery.dht_store import RecordStore
from sdnet_core.swarm.abc import SwarmStream
from sdnet_core.swarm.libp2p import Libp2pSwarm
from sdnet_core.swarm.relay import Relay
from sdnet_core.swarm.relay_messages import RelayStatus
from sdnet_core.wire import MessageStream

CUT_OFF = 7
PLACES = (0, 40, 300, 700, 1000)
"""After so many bytes in one direction a circuit breaks or a bit is turned over, circuit by circuit."""


class Lies:
    """Which lie is told now, and how often each was."""

    def __init__(self) -> None:
        self.now = ""
        self.told: Counter[str] = Counter()

    def tell(self, *lies: str) -> bool:
        """Whether to tell one of these now; counts it."""
        if self.now not in lies:
            return False
        self.told[self.now] += 1
        return True


class LyingStore(RecordStore):
    """Takes every record, and gives back what it likes."""

    def __init__(self, lies: Lies) -> None:
        super().__init__()
        self._lies = lies
        self._heard: dict[bytes, list[Record]] = {}

    def put(self, record: Record, *, owner: str, now: float) -> Record | None:
        self._heard.setdefault(record.key, []).append(record)
        return None

    def forget(self) -> None:
        self._heard.clear()

    @property
    def taken(self) -> int:
        return sum(map(len, self._heard.values()))

    @property
    def cards(self) -> int:
        return sum(bool(told[-1].value) for told in self._heard.values())

    def get(self, key: bytes, *, now: float) -> Record | None:
        heard = self._heard.get(key)
        if not heard:
            return None
        truth = heard[-1]
        answer = self._instead_of(truth, heard[0])
        if answer is not truth:
            self._lies.told[self._lies.now] += 1
        return answer

    def _instead_of(self, truth: Record, first: Record) -> Record | None:
        match self._lies.now:
            case "drops records":
                return None
            case "gives old records":
                return first
            case "gives another's record":
                others = (told[-1] for key, told in self._heard.items() if key != truth.key and told[-1].value)
                return next(others, truth)
            case "cuts records":
                return msgspec.structs.replace(truth, sequence=truth.sequence + 1, value=truth.value[:-CUT_OFF])
        return truth


class LyingDht(DhtServer):
    """Says nothing at all when that is the lie; the others are its store's."""

    lies: Lies

    async def _serve(self, stream: SwarmStream) -> None:
        if self.lies.tell("says nothing"):
            await anyio.sleep_forever()
        await super()._serve(stream)


class LyingRelay(Relay):
    """Carries connections elsewhere, or not as they are."""

    lies: Lies
    places = itertools.cycle(PLACES)

    async def _connect(self, stream: SwarmStream, messages: MessageStream, target: str) -> None:
        if self.lies.tell("denies places"):
            await self._say(messages, RelayStatus.NO_RESERVATION)
            return
        others = [peer for peer in self._reservations if peer not in (target, stream.peer_id)]
        if others and self.lies.tell("connects to another"):
            target = others[0]
        await super()._connect(stream, messages, target)

    async def _copy(
        self, source: SwarmStream, sink: SwarmStream, first: bytes, moved: list[float], scope: anyio.CancelScope
    ) -> None:
        if self.lies.tell("swallows", "breaks circuits", "turns bits over", "repeats"):
            sink = BentStream(sink, self.lies.now, next(self.places))
        await super()._copy(source, sink, first, moved, scope)


class BentStream(SwarmStream):
    """What is sent into it comes out in another form.

    :param at: after so many bytes.
    """

    def __init__(self, inner: SwarmStream, how: str, at: int) -> None:
        self._inner = inner
        self._how = how
        self._left = at

    @property
    def peer_id(self) -> str:
        return self._inner.peer_id

    @property
    def protocol(self) -> str:
        return self._inner.protocol

    @property
    def generation(self) -> int:
        return self._inner.generation

    async def send(self, item: bytes) -> None:
        left, self._left = self._left, self._left - len(item)
        match self._how:
            case "swallows":
                return
            case "breaks circuits" if left < len(item):
                await self._inner.send(item[: max(0, left)])
                raise anyio.BrokenResourceError
            case "turns bits over" if 0 <= left < len(item):
                item = item[:left] + bytes([item[left] ^ 1]) + item[left + 1 :]
            case "repeats":
                await self._inner.send(item)
        await self._inner.send(item)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self._inner.receive(max_bytes)

    async def send_eof(self) -> None:
        await self._inner.send_eof()

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def reset(self) -> None:
        await self._inner.reset()


async def main(listen: str) -> None:
    clock, lies = SystemClock(), Lies()
    swarm = Libp2pSwarm(os.urandom(32))

    def announced() -> Sequence[str]:
        return swarm.addresses

    store = LyingStore(lies)
    dht = LyingDht(swarm, clock, DhtClient(swarm, clock), announced=announced, store=store)
    relay = LyingRelay(swarm, clock)
    dht.lies = relay.lies = lies
    async with swarm.run(), anyio.create_task_group() as tasks:
        await swarm.listen([listen])
        tasks.start_soon(dht.run)
        tasks.start_soon(relay.run)
        tasks.start_soon(drain, swarm)
        say(f"{swarm.addresses[0]}/p2p/{swarm.peer_id}")
        while line := await anyio.to_thread.run_sync(sys.stdin.readline):
            if (wish := line.strip()) == "forgets":
                store.forget()
            else:
                lies.now = wish
            say(json.dumps({"told": lies.told, "taken": store.taken, "cards": store.cards}))
        tasks.cancel_scope.cancel()


async def drain(swarm: Libp2pSwarm) -> None:
    async for _ in swarm.events:
        pass


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], backend="trio")
