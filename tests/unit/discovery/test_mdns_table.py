"""What was heard: merging, expiry, and floods."""

from __future__ import annotations

from sdnet_core.discovery.candidates import MAX_PEERS
from sdnet_core.discovery.mdns_messages import PeerRecord
from sdnet_core.discovery.mdns_table import MAX_INSTANCES_PER_SENDER, Heard, PacketBudget, PeerTable

A, B = ("a1",), ("b1",)


def told(peer_id: str, instance: str = "i", *, tags: frozenset[bytes] = frozenset(), ttl_s: int = 120) -> PeerRecord:
    return PeerRecord(instance, peer_id, ("unused",), tags, ttl_s)


def hear(
    table: PeerTable, record: PeerRecord, addresses: tuple[str, ...], now: float, *, link: str = "l", sender: str = "s"
) -> tuple[Heard, ...]:
    return table.observe(record, addresses, link=link, sender=sender, now=now)


def test_a_later_record_replaces_an_earlier_one() -> None:
    table = PeerTable()
    (first,) = hear(table, told("p", tags=frozenset({b"t"})), A, 0)
    assert first == Heard("p", A, frozenset({b"t"}), 120, is_new_instance=True)
    assert hear(table, told("p"), B, 5) == (Heard("p", B, frozenset(), 125),)


def test_packets_sent_back_to_back_belong_together() -> None:
    table = PeerTable()
    hear(table, told("p"), A, 0)
    assert hear(table, told("p"), B, 0.1)[0].addresses == A + B
    assert hear(table, told("p"), ("c1",), 0.19)[0].addresses == (*A, *B, "c1")
    assert hear(table, told("p"), B, 0.25)[0].addresses == B


def test_what_is_said_on_one_link_does_not_take_back_what_is_said_on_another() -> None:
    table = PeerTable()
    hear(table, told("p"), A, 0, link="lo")
    (heard,) = hear(table, told("p"), B, 5, link="eth0")
    assert (heard.addresses, heard.is_new_instance) == (B + A, False)
    assert table.drop_link("eth0") == (Heard("p", A, frozenset(), 120),)


def test_a_restarted_peer_is_a_new_instance_with_its_newest_addresses_first() -> None:
    table = PeerTable()
    hear(table, told("p", "one"), A, 0)
    (heard,) = hear(table, told("p", "two"), B, 10)
    assert (heard.addresses, heard.is_new_instance, heard.expires_at) == (B + A, True, 130)
    assert table.expire(120) == (Heard("p", B, frozenset(), 130),)
    assert table.expire(130) == (Heard("p", (), frozenset(), 0.0),)
    assert len(table) == 0


def test_goodbye_and_addresses_of_no_use_remove() -> None:
    table = PeerTable()
    hear(table, told("p", "one"), A, 0)
    hear(table, told("p", "two"), B, 0)
    assert hear(table, told("", "two", ttl_s=0), (), 1) == (Heard("p", A, frozenset(), 120),)
    assert hear(table, told("p", "one"), (), 1)[0].addresses == ()
    assert hear(table, told("", "unheard of", ttl_s=0), (), 1) == ()


def test_an_instance_that_changes_hands_is_taken_from_the_former_peer() -> None:
    table = PeerTable()
    hear(table, told("p"), A, 0)
    gone, come = hear(table, told("q"), B, 0.1)
    assert (gone.peer_id, gone.addresses) == ("p", ())
    assert (come.peer_id, come.addresses, come.is_new_instance) == ("q", B, True)


def test_a_sender_that_floods_displaces_its_own_entries_only() -> None:
    table = PeerTable()
    hear(table, told("honest", "h"), A, 0, sender="honest")
    for number in range(3 * MAX_PEERS):
        hear(table, told(f"p{number}", f"i{number}"), B, 1, sender="flood")
    assert len(table) == MAX_INSTANCES_PER_SENDER + 1
    assert table.heard("honest").addresses == A
    assert table.heard(f"p{3 * MAX_PEERS - 1}").addresses == B


def test_many_senders_that_flood_do_not_displace_one_that_does_not() -> None:
    table = PeerTable()
    hear(table, told("honest", "h"), A, 0, sender="honest")
    for number in range(2 * MAX_PEERS):
        touched = hear(table, told(f"p{number}", f"i{number}"), B, 1, sender=f"flood {number % 40}")
        assert touched[-1].peer_id == f"p{number}"
    assert len(table) == MAX_PEERS
    assert table.heard("honest").addresses == A


def test_the_budget_is_per_sender_per_second_and_in_all() -> None:
    budget = PacketBudget(per_sender=2, in_all=3)
    assert [budget.take("a", 10.0) for _ in range(3)] == [True, True, False]
    assert [budget.take("b", 10.5) for _ in range(2)] == [True, False]
    assert budget.take("a", 11.0)
