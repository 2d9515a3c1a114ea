"""The plugin's routes of the local API."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec
import pytest

from sdnet_core import ApiRequest, NetworkingCore
from sdnet_core.errors import ConflictError, InvalidRequestError, NotFoundError
from sdnet_core.testing import linked_nodes
from sdnet_pairing import CodeError, PairingCode

from .nodes import PairingPlugin, shows_code, until

pytestmark = pytest.mark.anyio


async def call(node: NetworkingCore, method: str, path: str, body: Any = None, **values: str) -> Any:
    """Call a route as the local API does; gives its answer as plain values."""
    answer = await raw(node, method, path, body, **values)
    return msgspec.json.decode(msgspec.json.encode(answer))


async def raw(node: NetworkingCore, method: str, path: str, body: Any = None, **values: str) -> Any:
    (route,) = (route for name, route in node.routes() if (name, route.method, route.path) == ("pairing", method, path))
    return await route.endpoint(ApiRequest(path=values, body=body or {}))


async def test_pairing_through_the_api() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):
        shown = await call(a, "POST", "/sessions", {"role": "initiator"})
        assert shown["state"] == "waiting-for-connection"
        assert shown["code"].split() == shown["words"]
        assert len(shown["words"]) == 12
        states = []
        with anyio.fail_after(10):
            async for status in await raw(a, "GET", "/sessions/{id}/watch", id=shown["id"]):
                states.append(str(status.state))
                if states[-1] == "waiting-for-connection":
                    joining = await call(b, "POST", "/sessions", {"role": "joiner", "code": shown["code"]})
                    assert joining["id"] == shown["id"]
                if states[-1] == "awaiting-confirmation":
                    (waiting,) = await call(a, "GET", "/pending")
                    assert waiting["device"]["name"] == b.device_info.name
                    assert waiting["device"]["fingerprint"] == b.identity.fingerprint.words
                    await call(a, "POST", "/sessions/{id}/accept", id=shown["id"])
        assert states[0] == "waiting-for-connection"
        assert states[-1] == "completed"
        await until(lambda: b.remote_devices())

        told = [
            await call(a, "GET", "/sessions"),
            await call(a, "GET", "/sessions/{id}", id=shown["id"]),
            await call(b, "GET", "/sessions"),
            joining,
        ]
        assert "code" not in joining
        assert shows_code(str(shown), shown["words"])
        assert not shows_code(str(told), shown["words"])


async def test_rejecting_and_cancelling_through_the_api() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):
        shown = await call(a, "POST", "/sessions", {"role": "initiator"})
        await call(b, "POST", "/sessions", {"role": "joiner", "code": shown["words"]})
        with pytest.raises(ConflictError, match="No device waits"):
            await call(b, "POST", "/sessions/{id}/accept", id=shown["id"])
        with anyio.fail_after(10):
            async for status in await raw(a, "GET", "/sessions/{id}/watch", id=shown["id"]):
                if status.state == "awaiting-confirmation":
                    await call(a, "POST", "/sessions/{id}/reject", id=shown["id"])
        ended = await call(a, "GET", "/sessions/{id}", id=shown["id"])
        assert (ended["state"], ended["reason"]) == ("failed", "rejected")

        second = await call(a, "POST", "/sessions", {"role": "initiator"})
        cancelled = await call(a, "DELETE", "/sessions/{id}", id=second["id"][:8])
        assert cancelled["state"] == "cancelled"
        with pytest.raises(NotFoundError):
            await call(a, "DELETE", "/sessions/{id}", id="nothing")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "role"),
        ({"role": "both"}, "role"),
        ({"role": "joiner"}, "needs the code"),
        ({"role": "joiner", "code": "x" * 2000}, "code"),
        ({"role": "joiner", "code": 7}, "code"),
        ({"role": "joiner", "code": "zoo", "auto_accept": True}, "accepts"),
        ({"role": "initiator", "code": "zoo"}, "takes no code"),
        ({"role": "initiator", "surprise": 1}, "surprise"),
        ({"role": "initiator", "auto_accept": "yes"}, "auto_accept"),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused(body: dict[str, Any], said: str) -> None:
    async with linked_nodes(1, plugins=[PairingPlugin]) as (a,):
        with pytest.raises(InvalidRequestError, match=said):
            await call(a, "POST", "/sessions", body)


async def test_bad_codes_hints_and_times_are_refused() -> None:
    async with linked_nodes(1, plugins=[PairingPlugin]) as (a,):
        code = " ".join(PairingCode(bytes(16)).words)
        with pytest.raises(CodeError, match="12 words; 1 came"):
            await call(a, "POST", "/sessions", {"role": "joiner", "code": "zoo"})
        with pytest.raises(InvalidRequestError, match="hint"):
            await call(a, "POST", "/sessions", {"role": "joiner", "code": code, "hints": ["/ip4/127.0.0.1/tcp/1"]})
        for time_s in (0, -1, 301, 1e300):
            with pytest.raises(InvalidRequestError, match="300 s"):
                await call(a, "POST", "/sessions", {"role": "joiner", "code": code, "timeout_s": time_s})
        assert await call(a, "GET", "/sessions") == []
