"""Records, the table of nodes, lookups and the store: no network."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdnet_core.discovery.cards import make_card, worth_trying
from sdnet_core.discovery.dht_records import (
    MAX_LIFETIME_S,
    Card,
    Record,
    RecordKeys,
    check_record,
    daily_secret,
)
from sdnet_core.discovery.dht_store import Budget, RecordStore
from sdnet_core.discovery.kademlia import ALPHA, Contact, K, Lookup, RoutingTable, distance, node_id
from sdnet_core.errors import AuthenticationFailedError, NetworkingError
from sdnet_core.wire import decode, encode

NOW = 1_800_000_000.0
SECRET = bytes(range(32))
CARD = Card(peer_id="12D3KooWA", addresses=("/ip4/192.0.2.1/tcp/4001",), tags=(b"tag",), host=bytes(16))


def make(card: Card | None = CARD, *, secret: bytes = SECRET, sequence: int = 1, lifetime_s: int = 600) -> Record:
    return RecordKeys(secret).make(card, sequence=sequence, expires_at=int(NOW) + lifetime_s, nonce=bytes(12))


def test_a_record_opens_with_its_secret_only() -> None:
    record = make()
    check_record(record, now=NOW)
    assert RecordKeys(SECRET).open(record) == CARD
    with pytest.raises(AuthenticationFailedError):
        RecordKeys(bytes(32)).open(record)
    assert decode(encode(record), Record) == record


def test_nothing_of_the_secret_or_the_card_is_to_be_seen() -> None:
    data = encode(make())
    for text in (SECRET, b"12D3KooWA", b"192.0.2.1", b"tag"):
        assert text not in data


def test_cards_of_different_lengths_look_alike() -> None:
    short, long = make(), make(msgspec.structs.replace(CARD, addresses=CARD.addresses * 8))
    assert len(short.value) == len(long.value)


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_a_record_with_any_byte_changed_is_refused(place: int, flip: int) -> None:
    data = bytearray(encode(make()))
    data[place % len(data)] ^= flip
    try:
        changed = decode(bytes(data), Record)
        check_record(changed, now=NOW)
    except NetworkingError:
        return
    pytest.fail("a changed record was taken")


@pytest.mark.parametrize("lifetime_s", [-3601, int(MAX_LIFETIME_S) + 3601])
def test_a_record_that_is_over_or_lives_too_long_is_refused(lifetime_s: int) -> None:
    with pytest.raises(NetworkingError):
        check_record(make(lifetime_s=lifetime_s), now=NOW)


def test_a_sealed_card_cannot_go_under_another_number() -> None:
    record = make(sequence=1)
    keys = RecordKeys(SECRET)
    fresh = keys.make(None, sequence=2, expires_at=record.expires_at, nonce=bytes(12))
    forged = msgspec.structs.replace(fresh, value=record.value)
    with pytest.raises(AuthenticationFailedError):
        check_record(forged, now=NOW)
    with pytest.raises(AuthenticationFailedError):
        keys.open(forged)


def test_the_secret_of_a_day_changes_at_midnight() -> None:
    day = NOW - NOW % 86400
    assert daily_secret(SECRET, day) == daily_secret(SECRET, day + 86399) != daily_secret(SECRET, day + 86400)


def test_the_newer_record_stays() -> None:
    store = RecordStore()
    old, new = make(sequence=1), make(sequence=2)
    assert store.put(old, owner="a", now=NOW) is None
    assert store.put(new, owner="b", now=NOW) is None
    assert store.put(old, owner="a", now=NOW) == new
    assert store.put(make(None, sequence=3), owner="a", now=NOW) is None
    kept = store.get(old.key, now=NOW)
    assert kept is not None
    assert not kept.value


def test_records_are_forgotten_when_they_expire() -> None:
    store = RecordStore()
    store.put(make(lifetime_s=10), owner="a", now=NOW)
    assert store.get(make().key, now=NOW + 60) is not None
    store.sweep(now=NOW + 4000)
    assert len(store) == 0


def test_a_greedy_address_only_pushes_out_its_own() -> None:
    store = RecordStore(max_records=10, max_per_owner=6)
    honest = make(secret=bytes(32))
    store.put(honest, owner="honest", now=NOW)
    for number in range(50):
        store.put(make(secret=number.to_bytes(32, "big")[::-1] if number else SECRET), owner="greedy", now=NOW)
    for number in range(1, 20):
        store.put(make(secret=bytes([number]) * 32), owner="other", now=NOW)
    assert store.get(honest.key, now=NOW) == honest
    assert len(store) <= 10


def test_a_budget_fills_up_again() -> None:
    budget = Budget(per_s=1, burst=2)
    assert [budget.take("a", 0.0) for _ in range(3)] == [True, True, False]
    assert budget.take("b", 0.0)
    assert budget.take("a", 1.0)


def contact(number: int) -> Contact:
    return Contact(f"peer{number}", (f"/ip4/10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}/tcp/1",))


def test_the_table_is_bounded_and_forgets() -> None:
    table = RoutingTable("me")
    for number in range(5000):
        table.add(contact(number))
    assert len(table) < 256 * K
    held = next(iter(table))
    table.remove(held.peer_id)
    assert held not in table.closest(node_id(held.peer_id), 10_000)
    assert not table.add(Contact("me", ("/ip4/10.0.0.1/tcp/1",)))


def test_one_address_does_not_fill_the_table() -> None:
    table = RoutingTable("me")
    for number in range(500):
        table.add(Contact(f"sybil{number}", ("/ip4/10.0.0.1/tcp/1",)))
    assert len(table) <= 8


@settings(max_examples=15, deadline=None)
@given(st.integers(min_value=0, max_value=2**32), st.integers(min_value=1, max_value=60))
def test_a_lookup_finds_the_nearest(seed: int, count: int) -> None:
    """Every node knows some others; the lookup ends at those that are nearest of all that can be reached."""
    rng = random.Random(seed)
    nodes = {f"peer{n}": contact(n) for n in range(count)}
    tables = {name: RoutingTable(name) for name in nodes}
    for name, table in tables.items():
        for other in rng.sample(sorted(nodes), min(count, 40)):
            table.add(nodes[other])
        # As in a network that has settled: each knows the nodes next to it.
        for other in sorted(nodes, key=lambda n: distance(node_id(name), node_id(n)))[: K + 1]:
            table.add(nodes[other])
    target = rng.randbytes(32)
    lookup = Lookup(target, "seeker")
    lookup.add([nodes["peer0"]])
    running: list[str] = []
    while not lookup.done:
        while (asked := lookup.take()) is not None:
            running.append(asked.peer_id)
        assert 0 < len(running) <= ALPHA
        name = running.pop(rng.randrange(len(running)))
        lookup.answered(name, tables[name].closest(target))
    nearest = min(nodes, key=lambda n: distance(target, node_id(n)))
    assert lookup.closest()[0].peer_id == nearest


def test_a_node_that_names_new_ones_for_ever_ends_the_lookup_all_the_same() -> None:
    lookup = Lookup(bytes(32), "seeker")
    lookup.add([contact(0)])
    number = 1
    while not lookup.done:
        asked = lookup.take()
        assert asked is not None
        lookup.answered(asked.peer_id, [contact(number + n) for n in range(50)])
        number += 50
    assert lookup.questions <= 80


def card(*addresses: str, host: bytes = b"h" * 16, seen_as: tuple[str, ...] = ()) -> Card:
    return make_card("12D3KooWA", addresses, (), host=host, seen_as=seen_as)


def test_loopback_is_tried_on_the_same_machine_only() -> None:
    there = card("/ip4/127.0.0.1/tcp/1")
    assert worth_trying(there, host=b"h" * 16) == ("/ip4/127.0.0.1/tcp/1",)
    assert worth_trying(there, host=b"x" * 16) == ()


def test_private_addresses_behind_another_router_are_left_out() -> None:
    ours = ("/ip4/203.0.113.1/tcp/9",)
    behind_another = card("/ip4/192.168.1.5/tcp/1", seen_as=("/ip4/198.51.100.1/tcp/9",))
    behind_the_same = card("/ip4/192.168.1.5/tcp/1", seen_as=("/ip4/203.0.113.1/tcp/7",))
    routed = card("/ip4/10.1.0.2/tcp/1", seen_as=("/ip4/10.1.0.2/tcp/7",))
    assert worth_trying(behind_another, host=b"", seen_as=ours) == ()
    assert worth_trying(behind_another, host=b"") == ("/ip4/192.168.1.5/tcp/1",)
    assert worth_trying(behind_the_same, host=b"", seen_as=ours) == ("/ip4/192.168.1.5/tcp/1",)
    assert worth_trying(routed, host=b"", seen_as=ours) == ("/ip4/10.1.0.2/tcp/1",)
