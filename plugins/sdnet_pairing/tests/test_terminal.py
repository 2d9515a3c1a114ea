"""Asking the person at a terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator

import anyio
import pytest

from sdnet_core.testing import linked_nodes
from sdnet_pairing import SessionState, TerminalInterface
from sdnet_pairing.terminal import ask_while

from .nodes import PairingPlugin, asked, ended, pairing, until


class Screen:
    """A person's terminal: what they type goes into a pipe, what they see is kept."""

    def __init__(self) -> None:
        self.source, self._typing = os.pipe()
        self.seen = ""

    def write(self, text: str) -> None:
        self.seen += text

    def type(self, text: str) -> None:
        os.write(self._typing, text.encode())

    def hang_up(self) -> None:
        os.close(self._typing)
        self._typing = -1

    def close(self) -> None:
        os.close(self.source)
        if self._typing >= 0:
            os.close(self._typing)


@pytest.fixture
def screen() -> Iterator[Screen]:
    screen = Screen()
    yield screen
    screen.close()


@pytest.mark.anyio
@pytest.mark.parametrize(("typed", "state"), [("y\n", SessionState.COMPLETED), ("\n", SessionState.FAILED)])
async def test_the_person_answers(screen: Screen, typed: str, state: SessionState) -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):
        pairing(a).user_interface = TerminalInterface(screen.source, screen.write)
        shown = await pairing(a).start_pairing_as_initiator()
        joining = await pairing(b).start_pairing_as_joiner(shown.words)
        await until(lambda: "[y/N]" in screen.seen)
        assert b.device_info.fingerprint.words in screen.seen
        screen.type("maybe\n")
        await until(lambda: screen.seen.count("[y/N]") == 2)
        screen.type(typed)
        assert (await ended(pairing(b), joining)).state is state
        await until(lambda: "Paired with" in screen.seen or "rejected" in screen.seen)


@pytest.mark.anyio
async def test_a_terminal_that_is_gone_says_no(screen: Screen) -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):
        pairing(a).user_interface = TerminalInterface(screen.source, screen.write)
        shown = await pairing(a).start_pairing_as_initiator()
        joining = await pairing(b).start_pairing_as_joiner(shown.words)
        await until(lambda: "[y/N]" in screen.seen)
        screen.hang_up()
        assert (await ended(pairing(b), joining)).state is SessionState.FAILED


@pytest.mark.anyio
async def test_the_answer_can_come_another_way(screen: Screen) -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):
        pairing(a).user_interface = TerminalInterface(screen.source, screen.write)
        shown = await pairing(a).start_pairing_as_initiator()
        joining = await pairing(b).start_pairing_as_joiner(shown.words)
        await asked(pairing(a), shown.status)
        pairing(a).accept(str(shown.status.id))
        assert (await ended(pairing(b), joining)).state is SessionState.COMPLETED


@pytest.mark.anyio
async def test_two_questions_come_one_after_the_other(screen: Screen) -> None:
    async with linked_nodes(3, plugins=[PairingPlugin], paired=False) as (a, b, c):
        pairing(a).user_interface = TerminalInterface(screen.source, screen.write)
        for node in (b, c):
            shown = await pairing(a).start_pairing_as_initiator()
            await pairing(node).start_pairing_as_joiner(shown.words)
        with anyio.fail_after(30):
            await until(lambda: len(pairing(a).pending()) == 2)
            await until(lambda: "[y/N]" in screen.seen)
        assert screen.seen.count("asks to pair") == 1
        screen.type("y\n")
        await until(lambda: screen.seen.count("asks to pair") == 2)
        screen.type("y\n")
        await until(lambda: len(a.remote_devices()) == 2)


def test_without_an_event_loop(screen: Screen) -> None:
    screen.type("what\nyes\n")
    assert ask_while(lambda: True, source=screen.source, write=screen.write) is True
    assert screen.seen.count("[y/N]") == 2
    assert ask_while(lambda: False, source=screen.source, write=screen.write) is None
    screen.hang_up()
    assert ask_while(lambda: True, source=screen.source, write=screen.write) is False
