"""Disks that fail and lines that break in the middle of a pairing."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from sdnet_core import NetworkingCore
from sdnet_core.errors import StorageError
from sdnet_core.testing import linked_nodes
from sdnet_pairing import Reason, SessionState

from .nodes import PairingPlugin, connected, ended, pairing, roots

pytestmark = pytest.mark.anyio


async def test_a_joiner_with_a_slow_disk_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):
        quick = b.add_paired_device

        async def slow(*args: Any, **kwargs: Any) -> Any:
            await anyio.sleep(0.3)
            return await quick(*args, **kwargs)

        monkeypatch.setattr(b, "add_paired_device", slow)
        shown = await pairing(a).start_pairing_as_initiator(auto_accept=True)
        joining = await pairing(b).start_pairing_as_joiner(shown.words)
        for node in (a, b):
            end = await ended(pairing(node), joining)
            assert (end.state, end.pending) == (SessionState.COMPLETED, False)
        await connected(a, b)


async def test_a_joiner_with_a_full_disk_leaves_nobody_paired_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):

        async def full(*args: Any, **kwargs: Any) -> Any:
            raise StorageError("No space left on device.")

        monkeypatch.setattr(b, "add_paired_device", full)
        shown = await pairing(a).start_pairing_as_initiator(auto_accept=True)
        joining = await pairing(b).start_pairing_as_joiner(shown.words)
        assert (await ended(pairing(b), joining)).reason is Reason.STORAGE
        await ended(pairing(a), joining)
        assert all(state.device.pending for state in a._registry.devices())
        assert b.remote_devices() == ()


async def test_a_full_disk_on_the_initiator_pairs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):

        async def full(*args: Any, **kwargs: Any) -> Any:
            raise StorageError("No space left on device.")

        monkeypatch.setattr(a, "add_paired_device", full)
        shown = await pairing(a).start_pairing_as_initiator(auto_accept=True)
        joining = await pairing(b).start_pairing_as_joiner(shown.words)
        assert (await ended(pairing(a), joining)).reason is Reason.STORAGE
        assert (await ended(pairing(b), joining)).reason is Reason.FAILED
        assert a.remote_devices() == b.remote_devices() == ()


async def test_a_lost_confirmation_leaves_a_pending_pairing_that_the_first_session_makes_final(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as nodes:
        a, b = nodes
        store = b.add_paired_device

        async def store_and_lose_the_line(*args: Any, **kwargs: Any) -> Any:
            nodes.cut(a, b)
            return await store(*args, **kwargs)

        monkeypatch.setattr(b, "add_paired_device", store_and_lose_the_line)
        shown = await pairing(a).start_pairing_as_initiator(auto_accept=True)
        joining = await pairing(b).start_pairing_as_joiner(shown.words)
        assert (await ended(pairing(b), joining)).state is SessionState.COMPLETED
        end = await ended(pairing(a), joining)
        assert (end.state, end.pending) == (SessionState.COMPLETED, True)
        assert "has not confirmed yet" in end.detail
        assert [state.device.pending for state in a._registry.devices()] == [True]
        nodes.heal(a, b)
        await connected(a, b)
        assert [state.device.pending for state in a._registry.devices()] == [False]
        assert roots(a) == roots(b)


async def test_the_used_code_is_on_disk_before_the_device_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as nodes:
        stored_before: dict[str, bytes | None] = {}

        def spy(node: NetworkingCore) -> None:
            store = node.add_paired_device

            async def stored(*args: Any, **kwargs: Any) -> Any:
                stored_before[node.device_info.name] = await node.plugin_storage("pairing").load("used-codes")
                return await store(*args, **kwargs)

            monkeypatch.setattr(node, "add_paired_device", stored)

        for node in nodes:
            spy(node)
        a, b = nodes
        shown = await pairing(a).start_pairing_as_initiator(auto_accept=True)
        joining = await pairing(b).start_pairing_as_joiner(shown.words)
        await ended(pairing(b), joining)
        assert [str(joining.id).encode() in (stored or b"") for stored in stored_before.values()] == [True, True]
