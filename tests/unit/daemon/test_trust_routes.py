"""The local API's routes about trust."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from sdnet_core.testing import linked_nodes

pytestmark = pytest.mark.anyio
ApiOf = Callable[..., Any]


async def test_trust_name_revoke_forget(api_of: ApiOf) -> None:
    async with linked_nodes(3) as (a, b, c):
        api = api_of(a)
        answer = await api.call("POST", "/v1/devices/node1/trust", {"trust": "verified"})
        assert (answer.status, answer.json["trust"]) == (200, "verified")
        for body in ({"trust": "revoked"}, {"trust": 1}, {}, {"trust": "trusted", "more": 1}):
            (await api.call("POST", "/v1/devices/node1/trust", body)).problem("invalid-request", 400)
        renamed = (await api.call("POST", "/v1/devices/node1/rename", {"name": "über/Desk"})).json
        assert (renamed["name"], renamed["own_name"]) == ("über/Desk", "node1")
        found = (await api.call("GET", "/v1/devices/%C3%BCber%2FDesk")).json
        assert found["device_id"] == str(b.device_info.id)
        assert found["connection"]["streams"] == 0
        (await api.call("POST", "/v1/devices/node2/rename", {"name": "node1"})).problem("conflict", 409)
        (await api.call("POST", "/v1/devices/node2/rename", {"name": "\x1b[2J"})).problem("invalid-request", 400)
        (await api.call("POST", "/v1/devices/node2/rename", {"name": "x" * 300})).problem("invalid-request", 400)
        assert (await api.call("POST", "/v1/devices/node1/rename", {"name": None})).json["name"] == "node1"

        revoked = (await api.call("POST", "/v1/devices/node1/revoke")).json
        assert (revoked["state"], revoked["told"], revoked["connection"]) == ("revoked", True, None)
        again = (await api.call("POST", "/v1/devices/node1/revoke")).json
        assert (again["state"], again["told"]) == ("revoked", False)
        (await api.call("POST", "/v1/devices/node1/trust", {"trust": "trusted"})).problem("conflict", 409)
        (await api.call("POST", "/v1/devices/nobody/revoke")).problem("device-not-found", 404)

        forgotten = (await api.call("DELETE", "/v1/devices/node2")).json
        assert forgotten == {"device_id": str(c.device_info.id), "name": "node2", "told": True}
        (await api.call("DELETE", "/v1/devices/node2")).problem("device-not-found", 404)
        assert [device["name"] for device in (await api.call("GET", "/v1/devices")).json] == ["node1"]


async def test_approvals(api_of: ApiOf) -> None:
    async with linked_nodes(2) as (a, b):
        api = api_of(a)
        assert (await api.call("GET", "/v1/approvals")).json == []
        (await api.call("POST", "/v1/approvals/3f/approve")).problem("not-found", 404)
        device = a.remote_device(b.device_info.id)
        async with anyio.create_task_group() as tasks, a.subscribe_events(["approval-requested"]) as events:
            tasks.start_soon(lambda: a.approvals.ask(device, "danger", what="delete it"))
            await events.receive()
            (waiting,) = (await api.call("GET", "/v1/approvals")).json
            assert (waiting["device_name"], waiting["protocol"], waiting["what"]) == ("node1", "danger", "delete it")
            answered = await api.call("POST", f"/v1/approvals/{waiting['id'][:8]}/approve")
            assert answered.json["id"] == waiting["id"]
        assert (await api.call("GET", "/v1/approvals")).json == []


async def test_the_audit_log(api_of: ApiOf) -> None:
    async with linked_nodes(2) as (a, b):
        api = api_of(a)
        async with api.follow("/v1/audit/follow") as followed:
            await a.rename_device(b.device_info.id, "desk")
            name, line = await followed.next()
            assert (name, line["kind"], line["device_name"]) == ("message", "device-renamed", "desk")
        lines = (await api.call("GET", "/v1/audit")).json
        assert {"node-started", "device-paired", "device-renamed"} <= {line["kind"] for line in lines}
        assert all("mac" not in line for line in lines)
        only = (await api.call("GET", "/v1/audit?kinds=device-renamed,device-paired&limit=1")).json
        assert [line["kind"] for line in only] == ["device-renamed"]
        assert (await api.call("GET", f"/v1/audit?since={lines[-1]['at'] + 1}")).json == []
        for wrong in ("since=x", "since=-1", "limit=nan"):
            (await api.call("GET", f"/v1/audit?{wrong}")).problem("invalid-request", 400)
        report = (await api.call("POST", "/v1/audit/verify")).json
        assert (report["lines"], report["problems"]) == (len(lines), [])
