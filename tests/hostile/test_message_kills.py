"""``kill -9`` of either side while messages flow: none that was accepted is lost, none comes twice, all in order.

``SDNET_TEST_KILLS`` says how often; ``nox -s kills`` does it 50 times.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from sdnet_core import NetworkingCore
from sdnet_core.clock import SystemRandomness
from sdnet_core.testing import pair
from sdnet_messaging import MessagingService
from tests.hostile.message_node import make_node

pytestmark = [pytest.mark.anyio, pytest.mark.libp2p]

KILLS = int(os.environ.get("SDNET_TEST_KILLS", "8"))
SEED = int(os.environ.get("SDNET_TEST_SEED", "20"))
ROOT = Path(__file__).parents[2]


class Child:
    """A node in a process."""

    def __init__(self, home: Path, name: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "tests.hostile.message_node", str(home), name, *arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self._process.stdout is not None
        self._lines = self._process.stdout
        assert self.read() == "ready"

    def read(self) -> str:
        line = self._lines.readline()
        assert line.endswith("\n"), "the node ended by itself"
        return line.removesuffix("\n")

    def kill(self) -> list[str]:
        """Kill it; gives the whole lines that it had printed and nobody read."""
        self._process.kill()
        rest = self._lines.read()
        self._process.wait()
        self._lines.close()
        return rest.split("\n")[:-1]


@contextmanager
def killed_in_the_end() -> Iterator[dict[str, Child]]:
    children: dict[str, Child] = {}
    try:
        yield children
    finally:
        for child in children.values():
            child.kill()


def let_messages_flow(home: Path) -> list[str]:
    """Kill one of the two after the other; gives what was accepted."""
    choice = random.Random(SEED)
    accepted: list[str] = []
    with killed_in_the_end() as children:
        children["receiver"] = Child(home, "receiver")
        children["sender"] = Child(home, "sender", "0")
        for life in range(1, KILLS + 1):
            for _ in range(choice.randint(1, 40)):
                accepted.append(children["sender"].read())
            victim = choice.choice(["sender", "receiver"])
            rest = children.pop(victim).kill()
            if victim == "sender":
                accepted += rest
            children[victim] = Child(home, victim, *([str(life)] if victim == "sender" else []))
        accepted += children.pop("sender").kill()
    return accepted


async def all_delivered(sender: NetworkingCore, receiver: NetworkingCore) -> list[str]:
    with anyio.fail_after(30):
        while await sender.get_service(MessagingService).outbox():  # noqa: ASYNC110 - gives no signal
            await anyio.sleep(0.05)
    inbox = receiver.get_service(MessagingService)
    texts: list[str] = []
    after = 0
    while messages := await inbox.inbox(after):
        texts += [message.text for message in messages]
        after = messages[-1].number
    return texts


async def test_messages_survive_kills_of_either_side(tmp_path: Path) -> None:
    async with make_node(tmp_path, "receiver") as receiver, make_node(tmp_path, "sender") as sender:
        await pair(receiver, sender, SystemRandomness())
    accepted = await anyio.to_thread.run_sync(let_messages_flow, tmp_path)
    async with make_node(tmp_path, "receiver") as receiver, make_node(tmp_path, "sender") as sender:
        texts = await all_delivered(sender, receiver)
    assert len(accepted) > KILLS
    assert [text for text in accepted if text not in set(texts)] == [], "lost"
    assert len(texts) == len(set(texts)), "came twice"
    order = [tuple(map(int, text.split())) for text in texts]
    assert order == sorted(order)
