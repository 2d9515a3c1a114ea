"""The address book, and the source that it is."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from sdnet_core.discovery.addresses import PROVEN_EXPIRY_S, UNPROVEN_EXPIRY_S, AddressBook, KnownAddresses
from sdnet_core.discovery.candidates import Discovery
from sdnet_core.discovery.multiaddrs import MAX_ADDRESSES_PER_PEER
from sdnet_core.errors import SerializationError

A, B, C = (f"/ip4/192.0.2.{number}/tcp/1" for number in (1, 2, 3))


def test_what_worked_last_comes_first_and_what_failed_last(clock: Any) -> None:
    book = AddressBook(clock)
    book.add("p", [A, B, C])
    assert set(book.addresses("p")) == {A, B, C}
    clock.time += 1
    book.failed("p", A)
    book.succeeded("p", C)
    assert book.addresses("p") == (C, B, A)
    clock.time += 1
    book.succeeded("p", A)
    assert book.addresses("p") == (A, C, B)
    clock.time += 1
    book.failed("p", A)
    assert book.addresses("p") == (C, A, B)


def test_success_adds_failure_does_not(clock: Any) -> None:
    book = AddressBook(clock)
    book.failed("p", A)
    assert book.peers == ()
    book.succeeded("p", f"{B}/p2p/p")
    book.succeeded("p", "/ip4/0.0.0.0/tcp/0")
    assert book.addresses("p") == (B,)


def test_the_book_is_bounded_and_new_addresses_do_not_displace_proven_ones(clock: Any) -> None:
    book = AddressBook(clock)
    book.succeeded("p", A)
    for port in range(1, 100):
        clock.time += 1
        book.add("p", [f"/ip4/198.51.100.1/tcp/{port}"])
    assert len(book.addresses("p")) == MAX_ADDRESSES_PER_PEER
    assert book.addresses("p")[0] == A
    assert "/ip4/198.51.100.1/tcp/99" in book.addresses("p")


def test_old_addresses_expire_but_the_last_that_worked_does_not(clock: Any) -> None:
    book = AddressBook(clock)
    book.add("never", [A])
    book.add("p", [A])
    book.succeeded("p", B)
    clock.time += 1
    book.succeeded("p", C)
    clock.time += UNPROVEN_EXPIRY_S
    book.expire()
    assert book.peers == ("p",)
    assert book.addresses("p") == (C, B)
    clock.time += PROVEN_EXPIRY_S
    book.expire()
    assert book.addresses("p") == (C,)


def test_it_survives_being_stored(clock: Any) -> None:
    book = AddressBook(clock)
    book.add("p", [A, B])
    clock.time += 0.5
    book.succeeded("p", B)
    book.failed("p", A)
    book.add("q", [C])
    copy = AddressBook.from_bytes(book.to_bytes(), clock)
    assert copy.peers == book.peers
    assert [copy.known(peer) for peer in copy.peers] == [book.known(peer) for peer in book.peers]
    assert copy.to_bytes() == book.to_bytes()
    assert AddressBook.from_bytes(AddressBook(clock).to_bytes(), clock).peers == ()


@pytest.mark.parametrize("data", [b"", b"\xa0", b"rubbish"])
def test_what_is_no_book_is_refused(data: bytes, clock: Any) -> None:
    with pytest.raises(SerializationError):
        AddressBook.from_bytes(data, clock)


def test_watchers_hear_of_changes_only(clock: Any) -> None:
    book = AddressBook(clock)
    changed: list[str] = []
    unwatch = book.watch(changed.append)
    book.add("p", [A])
    book.add("p", [A])
    book.forget("p")
    book.forget("p")
    assert changed == ["p", "p"]
    unwatch()
    unwatch()
    book.add("p", [A])
    assert changed == ["p", "p"]


@pytest.mark.anyio
async def test_the_book_is_a_source_that_follows_its_changes(clock: Any) -> None:
    book = AddressBook(clock)
    book.add("p", [A, B])
    discovery = Discovery([KnownAddresses(book)], clock, peer_id="me", networks=lambda: ())
    async with discovery.run(), discovery.subscribe() as candidates:
        with anyio.fail_after(5):
            assert (await candidates.receive()).addresses == (A, B)
            book.failed("p", A)
            book.succeeded("q", C)
            # The failure is no news of p, so that it cannot cause the next attempt.
            assert (await candidates.receive()).peer_id == "q"
            assert discovery.known("p")[0].addresses == (B, A)
            book.forget("p")
            while discovery.known("p"):  # noqa: ASYNC110 - nothing tells of what is lost
                await anyio.sleep(0.001)
