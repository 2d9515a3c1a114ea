"""Who takes the data that devices send for other protocols."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import anyio

from sdnet_core import InboundMessage, RemoteDevice
from sdnet_core.errors import ConflictError, InvalidRequestError, NetworkingError, StorageError, TryLaterError
from sdnet_core.wire import decode, encode

from .checks import check_protocol_name
from .messages import MAX_MESSAGE_BYTES, MAX_PAYLOAD_BYTES, Answer, Data, Outcome
from .records import DataReceived

__all__ = ["DataHandler", "DataHandlers"]

logger = logging.getLogger(__name__)

DataHandler = Callable[[DataReceived], Awaitable[bytes | None]]

HANDLER_TIMEOUT_S = 25.0
"""How long a data handler may take; the core gives it 30 s."""


class DataHandlers:
    """The handlers of data, by protocol."""

    def __init__(self) -> None:
        self._handlers: dict[str, DataHandler] = {}

    @contextmanager
    def on_data(self, protocol: str, handler: DataHandler) -> Iterator[None]:
        """See `MessagingService.on_data`."""
        check_protocol_name(protocol)
        if protocol in self._handlers:
            raise ConflictError(f"Data for {protocol} are taken by another plugin already.")
        self._handlers[protocol] = handler
        try:
            yield
        finally:
            del self._handlers[protocol]

    async def handle(self, device: RemoteDevice, message: InboundMessage) -> bytes:
        """Give data to their handler.

        :raises SerializationError: it is not data.
        """
        data: Data = decode(message.data, Data, max_bytes=MAX_MESSAGE_BYTES)
        return encode(await self._handle(device, message, data))

    async def _handle(self, device: RemoteDevice, message: InboundMessage, data: Data) -> Answer:
        handler = self._handlers.get(data.protocol)
        if handler is None:
            return Answer(outcome=Outcome.NO_HANDLER, response=None)
        received = DataReceived(
            id=message.id,
            device=device,
            protocol=data.protocol,
            version=data.version,
            payload=data.payload,
            metadata=data.metadata,
            message=message,
        )
        try:
            with anyio.fail_after(HANDLER_TIMEOUT_S):
                response = await handler(received)
            if response is not None and len(response) > MAX_PAYLOAD_BYTES:
                raise InvalidRequestError(
                    f"The response has {len(response)} bytes; at most {MAX_PAYLOAD_BYTES} can go."
                )
        except (StorageError, TryLaterError):
            raise  # it comes again
        except (NetworkingError, TimeoutError) as error:
            logger.warning("data for %s from %s failed: %s", data.protocol, device.device_id, error or "timed out")
            return Answer(outcome=Outcome.HANDLER_FAILED, response=None)
        except Exception:
            logger.exception("the handler of data for %s raised", data.protocol)
            return Answer(outcome=Outcome.HANDLER_FAILED, response=None)
        return Answer(outcome=Outcome.DELIVERED, response=None if response is None else bytes(response))
