"""A FastAPI application that hosts an sdnet node: lists devices and streams events.

Run it with ``uvicorn app:app``; the node's settings come from its configuration file and from ``SDNET_*`` variables.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse

from sdnet_core import load_config
from sdnet_core.bridge import AsyncioCore
from sdnet_core.errors import NetworkingError


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run the node for as long as the application runs."""
    async with AsyncioCore(load_config("fastapi-host")) as core:
        app.state.core = core
        yield


app = FastAPI(title="A host of sdnet", lifespan=lifespan)


@app.get("/node")
async def node(request: Request) -> dict[str, Any]:
    """This node."""
    core: AsyncioCore = request.app.state.core
    status = await core.status()
    return {"name": status["name"], "device_id": str(status["device_id"]), "peer_id": status["peer_id"]}


@app.get("/devices")
async def devices(request: Request) -> list[dict[str, Any]]:
    """The paired devices."""
    core: AsyncioCore = request.app.state.core
    return [
        {"id": str(device.device_id), "name": device.name, "connected": device.connected}
        for device in await core.remote_devices()
    ]


@app.post("/devices/{name}/ping")
async def ping(request: Request, name: str) -> dict[str, float]:
    """The round-trip time to a device."""
    core: AsyncioCore = request.app.state.core
    try:
        device = await core.find_device(name)
        return {"rtt_s": await core.ping(device.device_id)}
    except NetworkingError as error:
        raise HTTPException(error.http_status, error.detail) from error


@app.get("/events")
async def events(request: Request) -> StreamingResponse:
    """What happens, as server-sent events."""
    core: AsyncioCore = request.app.state.core

    async def stream() -> AsyncIterator[str]:
        async with core.subscribe_events() as found:
            yield ": open\n\n"
            async for event in found:
                yield f"data: {json.dumps(event.to_dict(), default=str)}\n\n"

    return StreamingResponse(stream(), media_type="text/event-stream")
