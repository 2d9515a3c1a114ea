"""The asking side, and what other plugins and host programs use."""

from __future__ import annotations

import uuid

import msgspec
from sdnet_core import PluginContext
from sdnet_core.errors import InvalidRequestError
from sdnet_core.wire import decode, encode

from .messages import MAX_MESSAGE_BYTES, EchoAnswer, EchoRequest

__all__ = ["EchoService"]


class EchoService:
    """Asks other devices.

    :param ctx: the plugin's view of its node.
    """

    def __init__(self, ctx: PluginContext) -> None:
        self._ctx = ctx

    async def ask(self, device_id: uuid.UUID, text: str) -> str:
        """Ask a paired device.

        :returns: its answer.
        :raises InvalidRequestError: the text is empty or too long.
        :raises NetworkingError: the device is away, has not the plugin, or did not answer.
        """
        try:
            request = msgspec.convert({"t": 1, "text": text}, EchoRequest)
        except msgspec.ValidationError as error:
            raise InvalidRequestError(f"That cannot be sent: {error}.") from error
        data = await self._ctx.request(device_id, "echo", encode(request))
        return decode(data, EchoAnswer, max_bytes=MAX_MESSAGE_BYTES).text
