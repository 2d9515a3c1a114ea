"""How a person is asked whether to pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import anyio

from .session import PairingStatus

if TYPE_CHECKING:
    from .introduction.status import IntroductionStatus

__all__ = ["PairingUserInterface", "PendingList", "ProgrammaticInterface"]


class PairingUserInterface(Protocol):
    """What asks this device's person. Install one with ``service.user_interface = …``."""

    async def confirm_pairing(self, status: PairingStatus) -> bool:
        """Show the device's name, OS and fingerprint, and ask.

        Cancelled when the time is up, when the other device goes away, or when the answer came another way
        (``service.accept`` and ``service.reject`` work with every interface). Raising counts as no answer.

        :param status: ``status.device`` is who asks.
        :returns: whether to pair.
        """

    async def confirm_introduction(self, status: IntroductionStatus) -> bool:
        """Show who introduces which device, with its fingerprint, and ask. Cancelled and answered as above.

        :param status: ``status.devices`` is who is introduced, ``status.introducer`` who vouches.
        :returns: whether to pair.
        """

    def pairing_changed(self, status: PairingStatus) -> None:
        """Hear of every change of a session. Must return at once."""


class PendingList:
    """The daemon's interface: the question stands in the list of pending pairings until it is answered there."""

    async def confirm_pairing(self, status: PairingStatus) -> bool:
        """Wait; the answer comes by ``accept`` or ``reject``."""
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async def confirm_introduction(self, status: IntroductionStatus) -> bool:
        """Wait; the answer comes by ``accept`` or ``reject``."""
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    def pairing_changed(self, status: PairingStatus) -> None:
        """Nothing to do."""


class ProgrammaticInterface:
    """Lets a function answer, for programs without a person.

    :param decide: is given who asks, answers whether to pair.
    :param decide_introduction: the same for a device that is introduced; by default none is taken.
    """

    def __init__(
        self,
        decide: Callable[[PairingStatus], bool],
        decide_introduction: Callable[[IntroductionStatus], bool] = lambda status: False,
    ) -> None:
        self._decide = decide
        self._decide_introduction = decide_introduction
        self.seen: list[PairingStatus] = []
        """Every change of every session so far, the last 1,000."""

    async def confirm_pairing(self, status: PairingStatus) -> bool:
        """Answer at once."""
        return self._decide(status)

    async def confirm_introduction(self, status: IntroductionStatus) -> bool:
        """Answer at once."""
        return self._decide_introduction(status)

    def pairing_changed(self, status: PairingStatus) -> None:
        """Remember it."""
        self.seen = [*self.seen[-999:], status]
