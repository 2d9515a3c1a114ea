"""Goes on with one job until it is over, across reconnects, restarts and pauses."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import anyio

from sdnet_core import PluginContext, RemoteDevice
from sdnet_core.errors import DeviceNotFoundError, NetworkingError

from .conversation import is_transient
from .jobs import Job
from .slots import Slots
from .transfer import TransferState

__all__ = ["DISK_FULL", "LATER", "PAUSED_THERE", "Again", "Trying"]

_CONNECT_TIMEOUT_S = 15.0
_MIN_PAUSE_S = 0.5
_MAX_PAUSE_S = 30.0
_REST_S = 300.0
"""A side that has paused says when it goes on; should that get lost, it is asked again after so long."""
_MAX_SHORT_ATTEMPTS = 8
"""So many times in a row a connected device may end the conversation before it answers."""


@dataclass(frozen=True, slots=True)
class Again:
    """It is not over.

    :param reason: for the person; may name the other device as ``{name}``.
    :param rest: wait until the other side says that it goes on.
    """

    reason: str
    rest: bool = False


LATER = Again("{name} is busy.")
DISK_FULL = Again("The disk of {name} is full.")
PAUSED_THERE = Again("{name} has paused it.", rest=True)


class Trying(ABC):
    """One job's way.

    :param slots: limits how many run at once.
    :param woken: gives an event that is set when the device is connected again, or says that it goes on.
    """

    def __init__(
        self, ctx: PluginContext, job: Job, *, slots: Slots, woken: Callable[[uuid.UUID], anyio.Event]
    ) -> None:
        self._ctx = ctx
        self._job = job
        self._slots = slots
        self._woken = woken
        self._talking = False
        self._answered = False
        self.ended = anyio.Event()
        """Set when `run` has ended and how it ended is stored."""

    @abstractmethod
    def cancel(self, reason: str) -> bool:
        """Cancel in order if a conversation is under way.

        :returns: whether one is.
        """

    @abstractmethod
    def pause(self) -> bool:
        """End the conversation in order, if one is under way, without ending the transfer.

        :returns: whether one is.
        """

    @abstractmethod
    async def _converse(self, device: RemoteDevice) -> Again | None:
        """Go through one conversation with a device that is connected; sets `_talking` and `_answered`.

        :returns: None when the job has ended.
        """

    async def run(self) -> None:
        """Try until it is over or paused; then the job is in a state that stays, or nothing happens to it."""
        attempts = short = 0
        while True:
            woken = self._woken(self._job.transfer.device_id)
            self._answered = self._talking = False
            rest = False
            try:
                again = await self._attempt()
                if again is None:
                    return
                reason, rest = again.reason.format(name=self._job.transfer.device_name), again.rest
            except DeviceNotFoundError:
                self._job.end(TransferState.FAILED, reason="The device is no longer paired.")
                return
            except NetworkingError as error:
                if not is_transient(error):
                    self._job.end(TransferState.FAILED, reason=error.detail)
                    return
                reason = error.detail
                short = short + 1 if self._talking and not self._answered else 0
                if short >= _MAX_SHORT_ATTEMPTS:
                    self._job.end(TransferState.FAILED, reason="The other device ends the transfer without a reason.")
                    return
            if self._job.record.paused or self._job.cancel_reason is not None:
                return  # the conversation may have been lost before it could be ended in order
            attempts = 0 if self._answered else attempts + 1
            self._job.enter(TransferState.WAITING, reason=reason)
            pause_s = _REST_S if rest else min(_MAX_PAUSE_S, _MIN_PAUSE_S * 2 ** min(attempts, 10))
            with anyio.move_on_after(self._ctx.randomness.uniform(pause_s / 2, pause_s)):
                await woken.wait()

    async def _attempt(self) -> Again | None:
        job = self._job
        device = self._ctx.get_device(job.transfer.device_id)
        if device.trust.access is None:
            raise DeviceNotFoundError(f"{device.name} is {device.trust}.")
        if not device.connected:
            job.enter(TransferState.WAITING, reason=f"{device.name} is away.")
            await self._ctx.connect(device.device_id, timeout_s=_CONNECT_TIMEOUT_S)
        if job.transfer.state is not TransferState.QUEUED:
            job.enter(TransferState.QUEUED)
        async with self._slots.hold(job.record.priority):
            return await self._converse(device)
