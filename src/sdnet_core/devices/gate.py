"""Which peers may connect at all: everybody, but for revoked devices, unless a person is just pairing one anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..clock import Clock
from .refusals import Refusals
from .registry import DeviceRegistry, Pairing
from .revocations import RevocationList
from .trust import Trust

__all__ = ["PeerGate"]

EXPECTED_S = 120.0
"""So long a peer that we have turned to for pairing may talk to us."""
MAX_EXPECTED = 64


class PeerGate:
    """Asked by the swarm before a connection counts, and by the dispatcher before a stream does.

    :param on_close: called when a pairing window has closed, or a conversation that began in it is over, to end the
        connections of revoked peers that may not pair any more.
    """

    def __init__(
        self,
        clock: Clock,
        registry: DeviceRegistry,
        revocations: RevocationList,
        refusals: Refusals,
        on_close: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._registry = registry
        self._revocations = revocations
        self._refusals = refusals
        self._on_close = on_close
        self._windows = 0
        self._talking: Counter[str] = Counter()
        self._expected: dict[str, float] = {}

    def is_revoked(self, peer_id: str) -> bool:
        """Whether a peer is a device that was revoked and not paired anew, also if its record is lost."""
        state = self._registry.by_peer(peer_id)
        if state is not None:
            return state.device.trust is Trust.REVOKED
        return self._revocations.is_revoked(peer_id)

    def admits(self, peer_id: str) -> bool:
        """Whether a connection with a peer may be."""
        if not self.is_revoked(peer_id) or self.may_pair(peer_id):
            return True
        state = self._registry.by_peer(peer_id)
        device_id = None if state is None else state.device.device_id
        self._refusals.refused(peer_id, device_id, "connection", "The device is revoked.")
        return False

    def may_pair(self, peer_id: str) -> bool:
        """Whether a revoked peer may talk of pairing now: a person has asked for it on this device."""
        return (
            self._windows > 0
            or peer_id in self._talking
            or self._expected.get(peer_id, float("-inf")) > self._clock.monotonic()
            or isinstance(self._registry.stranger(peer_id), Pairing)
        )

    @property
    def is_open(self) -> bool:
        """Whether this device waits to be paired."""
        return self._windows > 0

    def talks_with(self, peer_id: str) -> bool:
        """Whether a pairing with a peer goes on, in which it has proven to know a code."""
        return isinstance(self._registry.stranger(peer_id), Pairing)

    @contextmanager
    def window(self) -> Iterator[None]:
        """This device waits to be paired, whoever comes."""
        self._windows += 1
        try:
            yield
        finally:
            self._windows -= 1
            if not self._windows:
                self._on_close()

    @contextmanager
    def pairing(self, peer_id: str) -> Iterator[None]:
        """A peer that came through the window is talked to, perhaps for longer than the window is open."""
        self._talking[peer_id] += 1
        try:
            yield
        finally:
            self._talking[peer_id] -= 1
            if not self._talking[peer_id]:
                del self._talking[peer_id]
                self._on_close()

    def expect(self, peer_id: str) -> None:
        """This device turns to a peer in order to pair with it."""
        now = self._clock.monotonic()
        self._expected = {peer: until for peer, until in self._expected.items() if until > now}
        if len(self._expected) < MAX_EXPECTED:
            self._expected[peer_id] = now + EXPECTED_S
