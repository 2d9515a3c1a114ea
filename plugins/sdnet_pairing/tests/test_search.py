"""What a search tells of itself, and why it found nothing."""

from __future__ import annotations

from itertools import pairwise

import anyio
import pytest

from sdnet_core import Candidate, Way, WayState
from sdnet_core.testing import linked_nodes, record_events
from sdnet_pairing import Activity, PairingProgress, Reason, SessionState
from sdnet_pairing.search import Search

from .nodes import PairingPlugin, asked, ended, pairing, reached

TAG = bytes(16)


def candidate(peer_id: str, *tags: bytes, source: str = "mdns") -> Candidate:
    return Candidate(peer_id, ("/ip4/192.0.2.1/tcp/1",), source, frozenset(tags))


def search(*ways: Way, hinted: bool = False) -> Search:
    return Search(lambda: ways, hinted=hinted)


MDNS, DHT_OFF = Way("mdns", WayState.LOOKING), Way("dht", WayState.OFF, "No meeting point is set.")


def test_nobody_else_on_the_network() -> None:
    said = search(MDNS, DHT_OFF).diagnosis()
    assert "No other device announces itself on this network" in said
    assert "multicast" in said
    assert "sdnet config bootstrap add" in said


def test_others_but_none_that_waits() -> None:
    looking = search(MDNS, DHT_OFF)
    looking.saw(candidate("a"))
    looking.saw(candidate("b", TAG))
    looking.saw(candidate("b"))  # does not wait any more
    said = looking.diagnosis()
    assert "2 other devices were seen, but none waits to be paired: the code has expired" in said


def test_others_that_wait_with_another_code() -> None:
    looking = search(MDNS, Way("dht", WayState.LOOKING))
    looking.saw(candidate("a", TAG))
    said = looking.diagnosis()
    assert "1 device here waits to be paired, but with another code: compare the words" in said
    assert "clocks" in said


def test_devices_elsewhere_are_not_taken_for_some_here() -> None:
    looking = search(MDNS, Way("dht", WayState.LOOKING))
    looking.saw(candidate("a", TAG, source="dht"))
    said = looking.diagnosis()
    assert "No other device announces itself on this network" in said
    assert "compare the words" not in said


def test_ways_that_do_not_work_are_named() -> None:
    said = search(
        Way("mdns", WayState.FAILED, "No interface can be used."), Way("dht", WayState.UNREACHABLE, "No answer.")
    ).diagnosis()
    assert "does not work: No interface can be used." in said
    assert "of no help now: No answer." in said
    assert "switched off" in search(DHT_OFF).diagnosis()


def test_found_but_not_reached() -> None:
    looking = search(MDNS, DHT_OFF)
    looking.saw(candidate("a", TAG))
    looking.found("a", ["/ip4/192.0.2.1/tcp/1"])
    looking.does("a", Activity.CONNECTING)
    assert looking.status().summary == "Found it; trying 1 address…"
    looking.failed("a", "Connection refused.")
    assert "trying again. Connection refused." in looking.status().summary
    said = looking.diagnosis()
    assert "could not be reached at 1 address: Connection refused. A firewall" in said


def test_the_furthest_attempt_counts() -> None:
    looking = search(MDNS, hinted=True)
    assert looking.status().summary == (
        "Looking on this network and where the link or hint says: no other devices seen, 0 waiting to be paired."
    )
    for peer, activity in (("a", Activity.ASKING), ("b", Activity.CONNECTING)):
        looking.found(peer, [])
        looking.does(peer, activity)
    assert looking.status().activity is Activity.ASKING
    assert "was reached" in looking.diagnosis()


@pytest.mark.anyio
async def test_a_search_is_followed_to_the_waiting_for_the_person() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b), record_events(b) as seen:
        shown = await pairing(a).start_pairing_as_initiator()
        joining = await pairing(b).start_pairing_as_joiner(shown.words)
        now = await reached(
            pairing(b), joining, lambda s: s.search is not None and s.search.activity is Activity.WAITING_FOR_APPROVAL
        )
        assert now.search is not None
        assert (now.search.found, now.search.pairing, now.search.peers) == (1, 1, 1)
        assert "accept" in now.search.summary
        assert (await seen.wait_for(PairingProgress, timeout_s=30)).session_id == joining.id
        await asked(pairing(a), shown.status)
        pairing(a).accept(str(shown.status.id))
        assert (await ended(pairing(b), joining)).state is SessionState.COMPLETED
        # One word of the code can stand in any text by chance; two in a row do not.
        pairs = [" ".join(two) for two in pairwise(shown.words)]
        assert not any(two in event.detail for event in seen.of(PairingProgress) for two in pairs)


@pytest.mark.anyio
async def test_a_search_that_finds_nothing_says_why() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):
        other = await pairing(a).start_pairing_as_initiator()
        pairing(a).cancel(str(other.status.id))
        joining = await pairing(b).start_pairing_as_joiner(other.words, timeout_s=0.3)
        end = await ended(pairing(b), joining)
        assert (end.state, end.reason) == (SessionState.EXPIRED, Reason.NOT_FOUND)
        assert "none waits to be paired" in end.detail
        assert end.search is not None


@pytest.mark.anyio
async def test_a_device_that_is_found_but_cut_off_is_said_to_be_so() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as nodes:
        a, b = nodes
        shown = await pairing(a).start_pairing_as_initiator()
        nodes.cut(a, b)
        joining = await pairing(b).start_pairing_as_joiner(shown.words, timeout_s=0.5)
        with anyio.fail_after(30):
            end = await ended(pairing(b), joining)
        assert "could not be reached" in end.detail
