"""What the messaging tests share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import anyio

from sdnet_core import NetworkingCore
from sdnet_core.testing import linked_nodes
from sdnet_messaging import MessagingService
from sdnet_messaging.plugin import MessagingPlugin

QUICK = {"plugins": {"messaging": {"connect_timeout_s": 0.5, "away_wait_s": 0.2, "ack_timeout_s": 0.5}}}


two_nodes = partial(linked_nodes, 2, plugins=[MessagingPlugin], settings=QUICK)
"""Two nodes with messaging, that do not wait long for each other."""


def service(core: NetworkingCore) -> MessagingService:
    return core.get_service(MessagingService)


async def eventually(condition: Callable[[], Awaitable[bool]], *, within_s: float = 10.0) -> None:
    """Wait until something is so."""
    with anyio.fail_after(within_s):
        while not await condition():  # noqa: ASYNC110 - what is waited for gives no signal
            await anyio.sleep(0.01)
