"""What the sync tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from sdnet_core import Clock, NetworkingCore
from sdnet_core.testing import LinkedNodes, linked_nodes
from sdnet_sync import Library, Role, SyncService
from sdnet_sync.plugin import SyncPlugin

QUICK: Mapping[str, Any] = {"plugins": {"sync": {"relay_delay_s": 0.03}}}

TEST_S, WITHIN_S = 240.0, 100.0
"""Only so that a test fails where it would hang: a disk that others use may take half a minute for one sync."""


@asynccontextmanager
async def nodes(
    count: int = 3, *, home: Path | None = None, settings: Mapping[str, Any] = QUICK, clock: Clock | None = None
) -> AsyncIterator[LinkedNodes]:
    """Nodes with sync, paired with each other; what is done with them, and their end, has a deadline."""
    with anyio.fail_after(TEST_S):
        async with linked_nodes(count, plugins=[SyncPlugin], home=home, settings=settings, clock=clock) as linked:
            yield linked


def service(core: NetworkingCore) -> SyncService:
    return core.get_service(SyncService)


async def eventually(condition: Callable[[], Awaitable[bool]], *, within_s: float = WITHIN_S) -> None:
    """Wait until something is so."""
    with anyio.fail_after(within_s):
        while not await condition():  # noqa: ASYNC110 - what is waited for gives no signal
            await anyio.sleep(0.005)


async def shared(owner: NetworkingCore, *others: NetworkingCore, role: Role = Role.WRITER) -> list[Library]:
    """A library of several nodes, in step."""
    library = await service(owner).create("Recipes")
    found = [library]
    for other in others:
        await service(owner).invite(library.id, other.device_info.id, role)
        found.append(await service(other).accept(library.id))
    await eventually(lambda: in_step(*found))
    return found


async def in_step(*libraries: Library) -> bool:
    """Whether replicas are the same, and all but one of them full members."""
    first = libraries[0].replica.view
    return all(
        library.replica.view.vector == first.vector
        and library.replica.view.root() == first.root()
        and library.role > Role.NONE
        and not library.replica.view.loading
        for library in libraries
    )


async def contents(library: Library) -> dict[tuple[str, str], dict[str, Any]]:
    async with aclosing(library.query()) as entries:
        return {(entry.kind, entry.id): dict(entry.fields) async for entry in entries}
