"""Introductions between whole nodes."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from sdnet_core import NetworkingCore, Trust
from sdnet_core.errors import ConflictError, InvalidRequestError, NotFoundError
from sdnet_core.testing import LinkedNodes, linked_nodes, pair, record_events
from sdnet_core.wire import encode
from sdnet_pairing import (
    EndReason,
    IntroductionRole,
    IntroductionService,
    IntroductionState,
    IntroductionStatus,
    PairingLimits,
    ProgrammaticInterface,
)

from .conversation import Seeded
from .nodes import PairingPlugin, pairing, until

pytestmark = pytest.mark.anyio


def introductions(node: NetworkingCore) -> IntroductionService:
    return node.get_service(IntroductionService)


@asynccontextmanager
async def three(**settings: Any) -> AsyncIterator[LinkedNodes]:
    """Three nodes, of which the first is paired with both others."""
    tables: Mapping[str, Mapping[str, Any]] = {"plugins": {"pairing": settings}} if settings else {}
    async with linked_nodes(3, plugins=[PairingPlugin], paired=False, settings=tables) as nodes:
        v, a, b = nodes
        await pair(v, a, Seeded("pair 0"))
        await pair(v, b, Seeded("pair 1"))
        yield nodes


async def over(node: NetworkingCore, introduction_id: uuid.UUID) -> IntroductionStatus:
    """Follow an introduction to its end."""
    with anyio.fail_after(30):
        await until(lambda: any(i.id == introduction_id for i in introductions(node).introductions()))
        async for now in introductions(node).watch(str(introduction_id)):
            if now.state.ended:
                return now
    raise AssertionError("it did not end")


async def asked(*nodes: NetworkingCore) -> None:
    for node in nodes:
        await until(lambda node=node: introductions(node).pending())


def root_of(node: NetworkingCore, other: NetworkingCore) -> bytes:
    root: bytes = node._registry.get(other.device_info.id).device.pairing_root
    return root


async def test_two_devices_pair_by_an_introduction_when_both_their_people_agree() -> None:
    async with three() as nodes:
        v, a, b = nodes
        started = introductions(v).introduce(a.device_info.id, b.device_info.id)
        await asked(a, b)
        (question,) = introductions(a).pending()
        assert question.role is IntroductionRole.INTRODUCED
        assert question.introducer == v.device_info.name
        (other,) = question.devices
        assert other.fingerprint == b.device_info.fingerprint.words
        introductions(a).accept(str(question.id))
        introductions(b).accept(str(question.id)[:8])
        for node in nodes:
            end = await over(node, started.id)
            assert (end.state, end.pending) == (IntroductionState.COMPLETED, False)
        await until(lambda: len(a.get_connected_devices()) == len(b.get_connected_devices()) == 2)
        assert root_of(a, b) == root_of(b, a)
        assert root_of(a, b) not in (root_of(v, a), root_of(v, b))
        assert [d.trust for d in a.remote_devices()] == [Trust.TRUSTED] * 2


async def test_always_asks_nobody() -> None:
    async with three(introductions="always") as (v, a, b):
        started = introductions(v).introduce(b.device_info.id, a.device_info.id)
        for node in (v, a, b):
            assert (await over(node, started.id)).state is IntroductionState.COMPLETED
        await a.connect(b.device_info.id)


async def test_always_still_asks_about_an_introducer_that_is_only_verified() -> None:
    async with three(introductions="always") as (v, a, b):
        await a.set_trust(v.device_info.id, Trust.VERIFIED)
        introductions(v).introduce(a.device_info.id, b.device_info.id)
        await asked(a)


@pytest.mark.parametrize(("policy", "reason"), [("never", EndReason.NEVER), ("ask", EndReason.REJECTED)])
async def test_no_is_told_to_everybody(policy: str, reason: EndReason) -> None:
    async with three(introductions=policy) as (v, a, b):
        started = introductions(v).introduce(a.device_info.id, b.device_info.id)
        if policy == "ask":
            await asked(a)
            introductions(a).reject(str(started.id))
        for node in (v, a, b):
            end = await over(node, started.id)
            assert (end.state, end.reason) == (IntroductionState.FAILED, reason)
            assert end.detail
        assert len(a.remote_devices()) == len(b.remote_devices()) == 1


async def test_a_program_answers_in_place_of_a_person() -> None:
    async with three() as (v, a, b):
        for node, answer in ((a, True), (b, False)):
            pairing(node).user_interface = ProgrammaticInterface(lambda status: False, lambda status, a=answer: a)
        started = introductions(v).introduce(a.device_info.id, b.device_info.id)
        assert (await over(v, started.id)).reason is EndReason.REJECTED


async def test_all_three_keep_it_in_their_audit_logs() -> None:
    async with three(introductions="always") as nodes:
        v, a, b = nodes
        started = introductions(v).introduce(a.device_info.id, b.device_info.id)
        for node in nodes:
            await over(node, started.id)
        for node, kinds in (
            (v, {"introduction-started", "introduction-completed"}),
            (a, {"introduction-requested", "introduction-completed", "device-paired"}),
            (b, {"introduction-requested", "introduction-completed", "device-paired"}),
        ):
            await node.audit.flush()
            lines = await node.audit.read()
            assert kinds <= {line["kind"] for line in lines}
            assert any(line.get("introduction_id") == str(started.id) for line in lines)


async def test_a_device_that_is_away_hears_of_it_when_it_is_back() -> None:
    async with three(introductions="always") as nodes:
        v, a, b = nodes
        nodes.cut(v, b)
        started = introductions(v).introduce(a.device_info.id, b.device_info.id)
        with anyio.fail_after(30):
            async for now in introductions(v).watch(str(started.id)):
                stages = {device.device_id: device.stage for device in now.devices}
                if stages[a.device_info.id] == "accepted":
                    assert stages[b.device_info.id] == "offered"
                    break
        nodes.heal(v, b)
        for node in nodes:
            assert (await over(node, started.id)).state is IntroductionState.COMPLETED


async def test_it_expires_when_nobody_answers() -> None:
    class Hasty(PairingPlugin):
        limits = PairingLimits(introduction_lifetime_s=1.0, expiry_check_s=0.02)

    Hasty.__name__ = "PairingPlugin"
    async with linked_nodes(3, plugins=[Hasty], paired=False) as (v, a, b):
        await pair(v, a, Seeded("pair 2"))
        await pair(v, b, Seeded("pair 3"))
        started = introductions(v).introduce(a.device_info.id, b.device_info.id)
        await asked(a, b)
        introductions(a).accept(str(started.id))
        for node in (v, a, b):
            assert (await over(node, started.id)).state is IntroductionState.EXPIRED
        assert len(a.remote_devices()) == len(b.remote_devices()) == 1


async def test_the_introducer_can_cancel() -> None:
    async with three() as (v, a, b):
        started = introductions(v).introduce(a.device_info.id, b.device_info.id)
        await asked(a, b)
        with pytest.raises(ConflictError, match="reject it instead"):
            introductions(a).cancel(str(started.id))
        introductions(v).cancel(str(started.id))
        for node in (v, a, b):
            assert (await over(node, started.id)).state is IntroductionState.CANCELLED
        with pytest.raises(ConflictError, match="is over"):
            introductions(v).cancel(str(started.id))


async def test_devices_that_are_paired_already_stay_as_they_are() -> None:
    async with three(introductions="always") as (v, a, b):
        await pair(a, b, Seeded("pair 4"))
        before = root_of(a, b)
        started = introductions(v).introduce(a.device_info.id, b.device_info.id)
        end = await over(v, started.id)
        assert end.reason is EndReason.ALREADY
        assert "already" in end.detail
        assert root_of(a, b) == before


async def test_an_introduction_does_not_undo_a_revocation() -> None:
    async with three(introductions="always") as (v, a, b):
        await pair(a, b, Seeded("pair 5"))
        await a.revoke_device(b.device_info.id)
        started = introductions(v).introduce(a.device_info.id, b.device_info.id)
        assert (await over(a, started.id)).reason is EndReason.REVOKED
        assert a.remote_device(b.device_info.id).trust is Trust.REVOKED


async def test_what_cannot_be_introduced_is_refused() -> None:
    async with three() as (v, a, b):
        service = introductions(v)
        with pytest.raises(InvalidRequestError, match="to itself"):
            service.introduce(a.device_info.id, a.device_info.id)
        started = service.introduce(a.device_info.id, b.device_info.id)
        with pytest.raises(ConflictError, match="already"):
            service.introduce(b.device_info.id, a.device_info.id)
        service.cancel(str(started.id))
        await over(v, started.id)
        await v.set_trust(b.device_info.id, Trust.VERIFIED)
        with pytest.raises(ConflictError, match="only trusted"):
            service.introduce(a.device_info.id, b.device_info.id)
        with pytest.raises(NotFoundError):
            service.get("ffff")


async def test_a_device_without_the_plugin_is_named() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=True) as nodes:
        v, a = nodes
        from sdnet_core.testing import memory_node

        plain = memory_node(nodes.home, "plain", network=nodes.network, discovery=nodes.discovery)
        async with plain as b:
            await pair(v, b, Seeded("pair 6"))
            started = introductions(v).introduce(a.device_info.id, b.device_info.id)
            await asked(a)
            introductions(a).accept(str(started.id))
            await until(lambda: "no plugin for introduction" in introductions(v).get(str(started.id)).detail)
            introductions(v).cancel(str(started.id))
            assert (await over(a, started.id)).state is IntroductionState.CANCELLED


async def test_events_tell_the_story() -> None:
    async with three() as (v, a, b):
        async with record_events(a) as seen:
            started = introductions(v).introduce(a.device_info.id, b.device_info.id)
            await asked(a, b)
            introductions(a).accept(str(started.id))
            introductions(b).accept(str(started.id))
            await over(a, started.id)
            requested = await seen.wait_for("introduction-requested")
            assert requested.asked
            assert requested.introducer_name == v.device_info.name
            completed = await seen.wait_for("introduction-completed")
            assert completed.device_ids == (b.device_info.id,)


async def test_the_same_offer_once_more_changes_nothing_and_later_it_is_a_replay() -> None:
    async with three() as (v, a, b):
        started = introductions(v).introduce(a.device_info.id, b.device_info.id)
        await asked(a, b)
        (mine,) = (i for i in introductions(v)._all if i.id == started.id)
        offer = encode(mine.machine.offer)
        (introducer,) = (d for d in a.remote_devices() if d.device_id == v.device_info.id)
        await introductions(a).receive(introducer, offer)
        assert len(introductions(a).introductions()) == 1
        introductions(a).reject(str(started.id))
        await over(v, started.id)
        await over(a, started.id)
        introductions(a)._all.clear()  # as after a restart
        await introductions(a).receive(introducer, offer)
        assert introductions(a).introductions() == ()
        assert introductions(a).pending() == ()
