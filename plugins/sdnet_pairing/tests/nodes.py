"""Whole nodes for the tests of the service."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import anyio

from sdnet_core import NetworkingCore
from sdnet_pairing import PairingLimits, PairingService, PairingStatus, SessionState
from sdnet_pairing import plugin as real

DEADLINE_S = 10.0


class PairingPlugin(real.PairingPlugin):
    """The plugin with waits that suit tests."""

    limits = PairingLimits(step_timeout_s=2.0, search_timeout_s=5.0, retry_pause_s=0.05, expiry_check_s=0.02)


class ShiftedClock:
    """The machine's clocks, which a test can turn forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now(self) -> float:
        return time.time() + self.ahead_s

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


def pairing(node: NetworkingCore) -> PairingService:
    """A node's pairing service."""
    return node.get_service(PairingService)


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    with anyio.fail_after(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - of things that have no event
            await anyio.sleep(0.005)


async def ended(service: PairingService, status: PairingStatus) -> PairingStatus:
    """Follow a session to its end."""
    return await reached(service, status, lambda now: now.state.ended)


async def reached(
    service: PairingService, status: PairingStatus, condition: Callable[[PairingStatus], bool]
) -> PairingStatus:
    """Follow a session until something is true of it."""
    with anyio.fail_after(DEADLINE_S):
        async for now in service.watch(str(status.id)):
            if condition(now):
                return now
    raise AssertionError("the session ended without it")


async def asked(service: PairingService, status: PairingStatus) -> PairingStatus:
    """Follow a session until its person is asked."""
    return await reached(service, status, lambda now: now.state is SessionState.AWAITING_CONFIRMATION)


async def connected(*nodes: NetworkingCore) -> None:
    """Wait until each node is connected to the others."""
    for node in nodes:
        await until(lambda node=node: len(node.get_connected_devices()) == len(nodes) - 1)


def roots(node: NetworkingCore) -> list[bytes]:
    """The roots of all pairings that a node holds."""
    return [state.device.pairing_root for state in node._registry.devices()]


def shows_code(text: str, words: Sequence[str]) -> bool:
    """Whether two neighbouring words of a code stand side by side in a text: one alone may stand there by chance."""
    said = re.findall("[a-z]+", text.lower())
    return any(pair in pairwise(said) for pair in pairwise(words))
