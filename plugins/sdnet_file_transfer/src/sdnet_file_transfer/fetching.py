"""Gets files from a folder that another device shares."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

import anyio

from sdnet_core import PluginContext, RemoteDevice
from sdnet_core.errors import ConnectionFailedError, NetworkTimeoutError, NotFoundError, ProtocolError, RefusedError

from . import fetch_messages as f
from .incoming import Incoming
from .jobs import Job
from .machine import PeerFailed
from .messages import Refusal
from .names import printable
from .receiving import Refused
from .shares import Entry
from .slots import Slots
from .transfer import TransferState
from .trying import LATER, PAUSED_THERE, Again, Trying

__all__ = ["Fetching", "go_on", "list_shared"]

_LIST_TIMEOUT_S = 90.0
"""Long enough for a person over there to allow it."""
_MAX_LISTED = 100_000


class Fetching(Trying):
    """One job's way."""

    def __init__(
        self,
        ctx: PluginContext,
        job: Job,
        *,
        slots: Slots,
        woken: Callable[[uuid.UUID], anyio.Event],
        incoming: Incoming,
    ) -> None:
        super().__init__(ctx, job, slots=slots, woken=woken)
        self._incoming = incoming

    def cancel(self, reason: str) -> bool:
        return self._incoming.cancel(self._job, reason)

    def pause(self) -> bool:
        return self._incoming.pause(self._job)

    async def _converse(self, device: RemoteDevice) -> Again | None:
        job = self._job
        job.enter(TransferState.OFFERING)
        stream = await self._ctx.open_stream(device.device_id, f.PROTOCOL_NAME)
        try:
            self._talking = True
            request = f.FetchItems(transfer_id=job.id.bytes, path=job.record.wanted)
            try:
                await stream.send_record(f.encode_fetch(request))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
                raise ConnectionFailedError("The connection was lost.") from error
            outcome, error_there = await self._incoming.serve(stream, expected=job)
        finally:
            with anyio.move_on_after(2, shield=True):
                await stream.aclose()
        if job.final is not None:
            return None
        self._answered = job.record.staging != ""
        if isinstance(outcome, PeerFailed):
            if outcome.code == Refusal.PAUSED:
                return PAUSED_THERE
            if outcome.code == Refusal.BUSY:
                return LATER
            state = TransferState.REJECTED if outcome.code == Refusal.POLICY else TransferState.FAILED
            job.end(state, reason=f"{device.name}: {outcome.reason}")
            return None
        if isinstance(outcome, Refused):
            if outcome.code in (Refusal.BUSY, Refusal.PAUSED):
                return LATER
            job.end(TransferState.FAILED, reason=outcome.reason)
            return None
        raise error_there or ConnectionFailedError("The connection was lost.")


async def list_shared(ctx: PluginContext, device_id: uuid.UUID, path: Sequence[str]) -> list[Entry]:
    """What a device shares with this one below a path, by name.

    :raises NotFoundError: nothing that this device may see is there.
    :raises RefusedError: a person over there said no.
    :raises NetworkingError: the device cannot be reached, or does not answer.
    """
    stream = await ctx.open_stream(device_id, f.PROTOCOL_NAME)
    found: list[Entry] = []
    try:
        with anyio.fail_after(_LIST_TIMEOUT_S):
            while True:
                after = found[-1].name if found else ""
                await stream.send_record(f.encode_fetch(f.FetchList(path=tuple(path), after=after)))
                answer = f.decode_fetch(await stream.receive_record())
                if isinstance(answer, f.FetchFailure):
                    reason = printable(answer.reason)
                    raise NotFoundError(reason) if answer.code == "not-found" else RefusedError(reason)
                if not isinstance(answer, f.FetchListing):
                    raise ProtocolError("The other device answered something else.")
                if any(one.name >= two.name for one, two in zip(answer.entries, answer.entries[1:], strict=False)):
                    raise ProtocolError("The other device lists names out of order.")
                if answer.entries and answer.entries[0].name <= after:
                    raise ProtocolError("The other device lists names out of order.")
                found += answer.entries
                if not answer.more or not answer.entries or len(found) >= _MAX_LISTED:
                    return found
    except TimeoutError:
        raise NetworkTimeoutError("The other device did not answer.") from None
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream) as error:
        raise ConnectionFailedError("The connection was lost.") from error
    finally:
        with anyio.move_on_after(2, shield=True):
            await stream.aclose()


async def go_on(ctx: PluginContext, device_id: uuid.UUID, transfer_id: uuid.UUID) -> None:
    """Tell a device that a transfer is no longer paused here.

    :raises NetworkingError: it cannot be reached; it asks by itself then, some minutes later or when it is connected.
    """
    stream = await ctx.open_stream(device_id, f.PROTOCOL_NAME)
    try:
        await stream.send_record(f.encode_fetch(f.FetchGoOn(transfer_id=transfer_id.bytes)))
    except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
        raise ConnectionFailedError("The connection was lost.") from error
    finally:
        with anyio.move_on_after(2, shield=True):
            await stream.aclose()
