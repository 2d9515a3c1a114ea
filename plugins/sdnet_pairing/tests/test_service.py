"""Pairing between whole nodes."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from sdnet_core import NetworkingCore
from sdnet_core.errors import ConflictError, InvalidRequestError, NotFoundError
from sdnet_core.testing import linked_nodes, memory_node
from sdnet_pairing import (
    CodeError,
    CodeUsedError,
    PairingCode,
    ProgrammaticInterface,
    Reason,
    Role,
    SessionState,
    UriError,
)

from .nodes import PairingPlugin, ShiftedClock, asked, connected, ended, pairing, reached, roots, shows_code, until

pytestmark = pytest.mark.anyio


def tags_seen_by(node: NetworkingCore) -> set[bytes]:
    return {tag for candidate in node.discovery.peers() for tag in candidate.tags}


async def test_two_devices_pair_when_the_person_accepts() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):
        shown = await pairing(a).start_pairing_as_initiator()
        joining = await pairing(b).start_pairing_as_joiner(shown.words)
        assert joining.id == shown.status.id

        question = await asked(pairing(a), shown.status)
        assert question.device is not None
        assert question.device.name == b.device_info.name
        assert question.device.fingerprint == b.identity.fingerprint.words
        assert [status.id for status in pairing(a).pending()] == [shown.status.id]
        assert a.remote_devices() == b.remote_devices() == ()

        pairing(a).accept(str(question.id)[:6])
        for node, other in ((a, b), (b, a)):
            end = await ended(pairing(node), shown.status)
            assert end.state is SessionState.COMPLETED
            assert end.device is not None
            assert end.device.device_id == other.device_info.id
            assert node.remote_device(other.device_info.id).name == other.device_info.name
        assert roots(a) == roots(b)
        await connected(a, b)
        # If the last word of the pairing was lost, the connection has said it.
        assert [state.device.pending for node in (a, b) for state in node._registry.devices()] == [False, False]
        assert pairing(a).pending() == ()


async def test_auto_accept_asks_nobody() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):
        shown = await pairing(a).start_pairing_as_initiator(auto_accept=True)
        joining = await pairing(b).start_pairing_as_joiner(" ".join(shown.words).upper())
        assert (await ended(pairing(b), joining)).state is SessionState.COMPLETED
        assert (await ended(pairing(a), shown.status)).state is SessionState.COMPLETED
        await connected(a, b)


async def test_a_program_can_answer_in_place_of_a_person() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):
        interface = ProgrammaticInterface(lambda status: status.device is not None and status.device.name == "node1")
        pairing(a).user_interface = interface
        shown = await pairing(a).start_pairing_as_initiator()
        await pairing(b).start_pairing_as_joiner(shown.words)
        await ended(pairing(a), shown.status)
        assert [str(status.state) for status in interface.seen] == [
            "connected",
            "authenticating",
            "awaiting-confirmation",
            "completed",
        ]


async def test_an_interface_that_raises_leaves_the_question_open() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):
        pairing(a).user_interface = ProgrammaticInterface(lambda status: 1 // 0 > 0)
        shown = await pairing(a).start_pairing_as_initiator()
        await pairing(b).start_pairing_as_joiner(shown.words)
        await asked(pairing(a), shown.status)
        pairing(a).accept(str(shown.status.id))
        assert (await ended(pairing(a), shown.status)).state is SessionState.COMPLETED


async def test_a_rejection_is_told_to_the_joiner_and_burns_the_code() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):
        shown = await pairing(a).start_pairing_as_initiator()
        joining = await pairing(b).start_pairing_as_joiner(shown.words)
        await asked(pairing(a), shown.status)
        pairing(a).reject(str(shown.status.id))
        for node in (a, b):
            end = await ended(pairing(node), joining)
            assert (end.state, end.reason) == (SessionState.FAILED, Reason.REJECTED)
            assert node.remote_devices() == ()
        again = await pairing(b).start_pairing_as_joiner(shown.words, timeout_s=0.3)
        assert (await ended(pairing(b), again)).reason is Reason.NOT_FOUND


async def test_nobody_answers_in_time() -> None:
    class Impatient(PairingPlugin):
        limits = type(PairingPlugin.limits)(answer_timeout_s=0.1, step_timeout_s=2.0)

    Impatient.__name__ = "PairingPlugin"
    async with linked_nodes(2, plugins=[Impatient], paired=False) as (a, b):
        shown = await pairing(a).start_pairing_as_initiator()
        joining = await pairing(b).start_pairing_as_joiner(shown.words)
        for node in (a, b):
            assert (await ended(pairing(node), joining)).reason is Reason.UNANSWERED
        with pytest.raises(ConflictError, match="it is failed"):
            pairing(a).accept(str(joining.id))


async def test_the_code_is_announced_only_while_it_can_be_used() -> None:
    clock = ShiftedClock()
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False, clock=clock) as (a, b):
        assert tags_seen_by(b) == set()

        shown = await pairing(a).start_pairing_as_initiator()
        (tag,) = tags_seen_by(b)
        assert len(tag) == 16
        pairing(a).cancel(str(shown.status.id))
        await until(lambda: not tags_seen_by(b))

        shown = await pairing(a).start_pairing_as_initiator()
        await until(lambda: tags_seen_by(b) - {tag})
        clock.ahead_s += 301
        assert pairing(a).get_session(str(shown.status.id)).state is SessionState.EXPIRED
        await until(lambda: not tags_seen_by(b))

        shown = await pairing(a).start_pairing_as_initiator()
        await pairing(b).start_pairing_as_joiner(shown.words)
        await asked(pairing(a), shown.status)
        await until(lambda: not tags_seen_by(b))


async def test_a_code_expires_after_five_minutes_even_if_nobody_looks() -> None:
    clock = ShiftedClock()
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False, clock=clock) as (a, _):
        shown = await pairing(a).start_pairing_as_initiator()
        assert shown.status.expires_at == shown.status.created_at + 300
        async with a.subscribe_events(["pairing-failed"]) as events:
            clock.ahead_s += 299
            assert pairing(a).get_session(str(shown.status.id)).state is SessionState.WAITING_FOR_CONNECTION
            clock.ahead_s += 1
            with anyio.fail_after(5):
                event = await events.receive()
        assert event.to_dict()["reason"] == "expired"


async def test_the_initiator_refuses_an_expired_code_whatever_the_joiner_knows() -> None:
    clock = ShiftedClock()
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False, clock=clock) as (a, b):
        shown = await pairing(a).start_pairing_as_initiator()
        clock.ahead_s += 300
        hint = f"{a.addresses[0]}/p2p/{a.identity.peer_id}"
        joining = await pairing(b).start_pairing_as_joiner(shown.words, hints=[hint])
        end = await ended(pairing(b), joining)
        assert (end.state, end.reason) == (SessionState.FAILED, Reason.REFUSED)


async def test_a_wrong_code_finds_nobody() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):
        await pairing(a).start_pairing_as_initiator()
        wrong = PairingCode(bytes(16)).words
        joining = await pairing(b).start_pairing_as_joiner(wrong, timeout_s=0.2)
        end = await ended(pairing(b), joining)
        assert (end.state, end.reason) == (SessionState.EXPIRED, Reason.NOT_FOUND)
        assert "No device that shows this code was found" in end.detail


async def test_a_wrong_code_is_refused_by_the_device_that_was_hinted_at() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):
        shown = await pairing(a).start_pairing_as_initiator()
        hint = f"{a.addresses[0]}/p2p/{a.identity.peer_id}"
        joining = await pairing(b).start_pairing_as_joiner(PairingCode(bytes(16)).words, hints=[hint])
        assert (await ended(pairing(b), joining)).reason is Reason.REFUSED
        assert pairing(a).get_session(str(shown.status.id)).state is SessionState.WAITING_FOR_CONNECTION
        # The right code still works: a wrong one burns nothing.
        await pairing(b).start_pairing_as_joiner(shown.words, hints=[hint])
        await asked(pairing(a), shown.status)


async def test_a_misspelt_code_starts_nothing() -> None:
    async with linked_nodes(1, plugins=[PairingPlugin]) as (a,):
        with pytest.raises(CodeError, match="Word 2"):
            await pairing(a).start_pairing_as_joiner("zoo zooo " + "zoo " * 9 + "wrong")
        assert pairing(a).get_pairing_status() == ()


async def test_a_used_code_is_known_as_used_after_a_restart_too() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):
        shown = await pairing(a).start_pairing_as_initiator(auto_accept=True)
        joining = await pairing(b).start_pairing_as_joiner(shown.words)
        await ended(pairing(b), joining)
        with pytest.raises(CodeUsedError, match="used already"):
            await pairing(b).start_pairing_as_joiner(shown.words)
        stored = await b.plugin_storage("pairing").load("used-codes")
        assert stored is not None
        assert str(joining.id).encode() in stored
        assert await a.plugin_storage("pairing").load("used-codes") is not None


async def test_of_two_joiners_with_one_code_the_first_wins() -> None:
    async with linked_nodes(3, plugins=[PairingPlugin], paired=False) as (a, b, c):
        shown = await pairing(a).start_pairing_as_initiator()
        first = await pairing(b).start_pairing_as_joiner(shown.words)
        await asked(pairing(a), shown.status)
        hint = f"{a.addresses[0]}/p2p/{a.identity.peer_id}"
        second = await pairing(c).start_pairing_as_joiner(shown.words, hints=[hint])
        assert (await ended(pairing(c), second)).reason is Reason.REFUSED
        pairing(a).accept(str(first.id))
        assert (await ended(pairing(b), first)).state is SessionState.COMPLETED
        assert [device.name for device in a.remote_devices()] == [b.device_info.name]
        assert c.remote_devices() == ()


async def test_of_two_joiners_at_the_same_moment_exactly_one_wins() -> None:
    async with linked_nodes(3, plugins=[PairingPlugin], paired=False) as (a, b, c):
        shown = await pairing(a).start_pairing_as_initiator(auto_accept=True)
        async with anyio.create_task_group() as tasks:
            for node in (b, c):
                tasks.start_soon(pairing(node).start_pairing_as_joiner, shown.words)
        ends = [await ended(pairing(node), shown.status) for node in (b, c)]
        assert sorted(str(end.state) for end in ends) == ["completed", "failed"]
        (loser,) = (end for end in ends if end.state is SessionState.FAILED)
        assert loser.reason in (Reason.USED, Reason.REFUSED)
        assert len(a.remote_devices()) == 1


async def test_several_sessions_at_once_do_not_disturb_each_other() -> None:
    async with linked_nodes(3, plugins=[PairingPlugin], paired=False) as (a, b, c):
        for_b = await pairing(a).start_pairing_as_initiator(auto_accept=True)
        for_c = await pairing(a).start_pairing_as_initiator(auto_accept=True)
        third = await pairing(a).start_pairing_as_initiator()
        await pairing(b).start_pairing_as_joiner(for_b.words)
        await pairing(c).start_pairing_as_joiner(for_c.words)
        for shown, other in ((for_b, b), (for_c, c)):
            end = await ended(pairing(a), shown.status)
            assert end.device is not None
            assert end.device.device_id == other.device_info.id
        assert pairing(a).get_session(str(third.status.id)).state is SessionState.WAITING_FOR_CONNECTION
        assert [str(s.state) for s in pairing(a).get_pairing_status()] == [
            "completed",
            "completed",
            "waiting-for-connection",
        ]


async def test_cancelling_on_the_initiator_tells_the_joiner() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):
        shown = await pairing(a).start_pairing_as_initiator()
        joining = await pairing(b).start_pairing_as_joiner(shown.words)
        await asked(pairing(a), shown.status)
        assert pairing(a).cancel(str(shown.status.id)).state is SessionState.CANCELLED
        end = await ended(pairing(b), joining)
        assert (end.state, end.reason) == (SessionState.FAILED, Reason.CANCELLED)
        with pytest.raises(ConflictError, match="over"):
            pairing(a).cancel(str(shown.status.id))


async def test_cancelling_on_the_joiner_withdraws_the_question() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):
        shown = await pairing(a).start_pairing_as_initiator()
        joining = await pairing(b).start_pairing_as_joiner(shown.words)
        await asked(pairing(a), shown.status)
        pairing(b).cancel(str(joining.id))
        end = await ended(pairing(a), shown.status)
        assert (end.state, end.reason) == (SessionState.FAILED, Reason.CONNECTION_LOST)
        assert pairing(a).pending() == ()
        assert a.remote_devices() == b.remote_devices() == ()


async def test_a_lost_line_while_the_person_is_asked_ends_both() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as nodes:
        a, b = nodes
        shown = await pairing(a).start_pairing_as_initiator()
        joining = await pairing(b).start_pairing_as_joiner(shown.words)
        await asked(pairing(a), shown.status)
        nodes.cut(a, b)
        for node in (a, b):
            assert (await ended(pairing(node), joining)).reason is Reason.CONNECTION_LOST
            assert node.remote_devices() == ()


async def test_a_joiner_whose_way_is_cut_keeps_trying_until_it_heals() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as nodes:
        a, b = nodes
        nodes.cut(a, b)
        shown = await pairing(a).start_pairing_as_initiator(auto_accept=True)
        joining = await pairing(b).start_pairing_as_joiner(shown.words)
        await anyio.sleep(0.1)
        assert pairing(b).get_session(str(joining.id)).state is not SessionState.COMPLETED
        nodes.heal(a, b)
        assert (await ended(pairing(b), joining)).state is SessionState.COMPLETED


async def test_a_device_does_not_pair_with_itself() -> None:
    async with linked_nodes(1, plugins=[PairingPlugin]) as (a,):
        shown = await pairing(a).start_pairing_as_initiator()
        with pytest.raises(ConflictError, match="shows that code itself"):
            await pairing(a).start_pairing_as_joiner(shown.words)


async def test_joining_twice_with_one_code_is_refused() -> None:
    async with linked_nodes(1, plugins=[PairingPlugin]) as (a,):
        words = PairingCode(bytes(16)).words
        await pairing(a).start_pairing_as_joiner(words)
        with pytest.raises(ConflictError, match="joining with that code already"):
            await pairing(a).start_pairing_as_joiner(words)


async def test_open_and_ended_sessions_are_bounded() -> None:
    async with linked_nodes(1, plugins=[PairingPlugin]) as (a,):
        service = pairing(a)
        for _ in range(service.limits.max_ended_sessions + 5):
            shown = await service.start_pairing_as_initiator()
            service.cancel(str(shown.status.id))
        assert len(service.get_pairing_status()) <= service.limits.max_ended_sessions + 1
        for _ in range(service.limits.max_open_sessions):
            await service.start_pairing_as_initiator()
        with pytest.raises(ConflictError, match="Too many"):
            await service.start_pairing_as_initiator()


async def test_sessions_are_named_by_a_unique_beginning() -> None:
    async with linked_nodes(1, plugins=[PairingPlugin]) as (a,):
        service = pairing(a)
        shown = [await service.start_pairing_as_initiator() for _ in range(5)]
        assert service.get_session(str(shown[3].status.id)[:12].upper()).id == shown[3].status.id
        for nothing in ("", "  ", "x"):
            with pytest.raises(NotFoundError, match="no pairing session"):
                service.get_session(nothing)


@pytest.mark.parametrize(
    "hint",
    [
        "",
        "/ip4/127.0.0.1/tcp/1",
        "/p2p/12D3KooW",
        "/ip4/127.0.0.1/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
    ],
)
async def test_a_hint_that_names_no_peer_is_refused(hint: str) -> None:
    async with linked_nodes(1, plugins=[PairingPlugin]) as (a,):
        with pytest.raises(InvalidRequestError, match="hint"):
            await pairing(a).start_pairing_as_joiner(PairingCode(bytes(16)).words, hints=[hint])


async def test_events_tell_the_story_without_the_code() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):
        async with a.subscribe_events() as events:
            shown = await pairing(a).start_pairing_as_initiator()
            await pairing(b).start_pairing_as_joiner(shown.words)
            await asked(pairing(a), shown.status)
            pairing(a).accept(str(shown.status.id))
            told = []
            with anyio.fail_after(5):
                async for event in events:
                    told.append(event.to_dict())
                    if event.kind == "pairing-completed":
                        break
        ours = [event for event in told if event["kind"].startswith("pairing-")]
        assert [event.get("state", event["kind"]) for event in ours] == [
            "connected",
            "authenticating",
            "awaiting-confirmation",
            "pairing-request",
            "completed",
            "pairing-completed",
        ]
        (request,) = (event for event in ours if event["kind"] == "pairing-request")
        assert request["device_name"] == b.device_info.name
        assert request["fingerprint"] == b.identity.fingerprint.words
        assert not shows_code(str(told), shown.words)


async def test_stopping_the_node_ends_its_sessions() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):
        service = pairing(a)
        shown = await service.start_pairing_as_initiator()
        joining = await pairing(b).start_pairing_as_joiner(PairingCode(bytes(16)).words)
        assert joining.role is Role.JOINER
    assert service.get_session(str(shown.status.id)).state is SessionState.CANCELLED


async def test_devices_that_are_paired_can_pair_anew() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin]) as (a, b):
        before = roots(a)
        shown = await pairing(a).start_pairing_as_initiator(auto_accept=True)
        joining = await pairing(b).start_pairing_as_joiner(shown.words)
        for node in (a, b):
            assert (await ended(pairing(node), joining)).state is SessionState.COMPLETED
        assert roots(a) == roots(b) != before
        await connected(a, b)
        await reached(pairing(a), shown.status, lambda now: not now.pending)


async def test_a_link_finds_the_device_where_discovery_does_not() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as nodes:
        a, b = nodes
        nodes.discovery.forget(a.identity.peer_id)
        shown = await pairing(a).start_pairing_as_initiator(auto_accept=True)
        joining = await pairing(b).start_pairing_as_joiner(f" {shown.uri[:40]}\n{shown.uri[40:]}\n")
        assert (await ended(pairing(b), joining)).state is SessionState.COMPLETED
        assert (await ended(pairing(a), joining)).device is not None


async def test_an_old_link_is_refused_by_the_device_that_made_it_at_once() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):
        shown = await pairing(a).start_pairing_as_initiator()
        pairing(a).cancel(str(shown.status.id))
        joining = await pairing(b).start_pairing_as_joiner(shown.uri)
        assert (await ended(pairing(b), joining)).reason is Reason.REFUSED


async def test_a_changed_link_starts_nothing() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):
        shown = await pairing(a).start_pairing_as_initiator()
        with pytest.raises(UriError, match="not whole"):
            await pairing(b).start_pairing_as_joiner(shown.uri[:-3])
        assert pairing(b).get_pairing_status() == ()


async def test_the_meeting_points_of_a_link_are_taken_over(tmp_path: Path) -> None:
    point = "/ip4/198.51.100.7/tcp/4001/p2p/12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB"
    async with linked_nodes(1, plugins=[PairingPlugin], paired=False) as nodes:
        (b,) = nodes
        knows = memory_node(
            tmp_path,
            "knows",
            network=nodes.network,
            discovery=nodes.discovery,
            plugins=[PairingPlugin],
            settings={"discovery": {"bootstrap": (point,)}},
        )
        async with knows as a:
            shown = await pairing(a).start_pairing_as_initiator(auto_accept=True)
            assert f"&via={point}&sum=" in shown.uri
            joining = await pairing(b).start_pairing_as_joiner(shown.uri)
            assert (await ended(pairing(b), joining)).state is SessionState.COMPLETED
            assert b.meeting_points == (point,)
