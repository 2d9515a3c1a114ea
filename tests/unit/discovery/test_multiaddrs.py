"""Which addresses are worth dialling."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.discovery.multiaddrs import (
    MAX_ADDRESSES_PER_PEER,
    is_loopback,
    parse_multiaddr,
    useful_addresses,
)

PEER = "12D3KooWQ9Wf1dbYU2Q3j9WTpLUZFy2QxYsK6s3Kd5zomHwTc1kT"
OTHER = "12D3KooWAm7j5vfmT3oJ9KHV4YdiWYBipttAoMNiQy5P7zYNQ39K"

components = st.one_of(
    st.sampled_from(
        ["ip4", "ip6", "tcp", "udp", "p2p", "p2p-circuit", "ws", "quic-v1", "dns4", "0", "", "::1", "127.0.0.1"]
    ),
    st.text(max_size=12),
)
multiaddrs = st.lists(components, max_size=20).map(lambda parts: "/" + "/".join(parts))


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("/ip4/192.0.2.1/tcp/4001", "/ip4/192.0.2.1/tcp/4001"),
        ("/ip6/2001:DB8:0::1/udp/4001/quic-v1", "/ip6/2001:db8::1/udp/4001/quic-v1"),
        ("/ip4/192.0.2.1/tcp/04001/ws", "/ip4/192.0.2.1/tcp/4001/ws"),
        ("/ip6zone/eth0/ip6/fe80::1/tcp/1", "/ip6zone/eth0/ip6/fe80::1/tcp/1"),
        ("/memory/17", "/memory/17"),
    ],
)
def test_an_address_is_read_into_one_form(text: str, canonical: str) -> None:
    assert str(parse_multiaddr(text)) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "ip4/192.0.2.1/tcp/1",
        "/ip4",
        "/ip4/192.0.2/tcp/1",
        "/ip4/192.0.2.1/tcp/65536",
        "/ip4/192.0.2.1/tcp/-1",
        "/ip6/fe80::1%eth0/tcp/1",
        "/ip4/192.0.2.1/tcp/1/shell/x",
        "/ip4/192.0.2.1/tcp/1\n",
        "/ip4/192.0.2.1" + "/tcp/1" * 16,
        "/dns4/" + "a" * 600 + "/tcp/1",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - which of the checks it fails does not matter
        parse_multiaddr(text)


@given(multiaddrs)
def test_an_address_in_canonical_form_stays_as_it_is(text: str) -> None:
    try:
        address = str(parse_multiaddr(text))
    except ValueError:
        return
    assert str(parse_multiaddr(address)) == address


@given(st.lists(multiaddrs, max_size=40))
def test_choosing_never_fails_and_settles(texts: list[str]) -> None:
    chosen = useful_addresses(PEER, texts)
    assert len(chosen) <= MAX_ADDRESSES_PER_PEER
    assert useful_addresses(PEER, chosen) == chosen


@pytest.mark.parametrize(
    "useless",
    [
        "/ip4/0.0.0.0/tcp/4001",
        "/ip6/::/tcp/4001",
        "/ip4/224.0.0.251/udp/5353",
        "/ip6/ff02::fb/udp/5353",
        "/ip4/255.255.255.255/tcp/4001",
        "/ip4/192.0.2.1/tcp/0",
        "/ip4/192.0.2.1/udp/0/quic-v1",
        "/ip6/fe80::1/tcp/4001",
        "/ip4/192.0.2.1",
        f"/ip4/192.0.2.1/tcp/4001/p2p/{OTHER}",
        f"/p2p/{PEER}",
        "/dnsaddr/bootstrap.example",
    ],
)
def test_useless_addresses_are_left_out(useless: str) -> None:
    assert useful_addresses(PEER, [useless, "/ip4/192.0.2.1/tcp/1"]) == ("/ip4/192.0.2.1/tcp/1",)


def test_the_peers_own_id_is_taken_off_and_a_relays_stays() -> None:
    relayed = f"/ip4/192.0.2.9/tcp/1/p2p/{OTHER}/p2p-circuit"
    assert useful_addresses(PEER, [f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}", f"{relayed}/p2p/{PEER}", relayed]) == (
        "/ip4/192.0.2.1/tcp/1",
        relayed,
    )


def test_near_addresses_come_first() -> None:
    networks = [ipaddress.ip_interface("198.51.100.7/24"), ipaddress.ip_interface("2001:db8:5::7/64")]
    far, near, loopback, near6 = (
        "/ip4/8.8.8.8/tcp/1",
        "/ip4/198.51.100.9/tcp/1",
        "/ip4/127.0.0.1/tcp/1",
        "/ip6/2001:db8:5::9/tcp/1",
    )
    private, relayed = "/ip4/10.0.0.1/tcp/1", f"/ip4/198.51.100.9/tcp/1/p2p/{OTHER}/p2p-circuit"
    assert useful_addresses(PEER, [relayed, far, private, near, loopback, near6], networks=networks) == (
        loopback,
        near,
        near6,
        private,
        far,
        relayed,
    )


def test_loopback_of_another_machine_is_left_out() -> None:
    addresses = ["/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1", "/ip4/192.0.2.1/tcp/1"]
    assert useful_addresses(PEER, addresses, allow_loopback=False) == ("/ip4/192.0.2.1/tcp/1",)
    assert [is_loopback(address) for address in addresses] == [True, True, False]


def test_the_nearest_are_kept_when_there_are_too_many() -> None:
    far = [f"/ip4/8.8.8.8/tcp/{port}" for port in range(1, 100)]
    chosen = useful_addresses(PEER, [*far, "/ip4/10.0.0.1/tcp/1"])
    assert len(chosen) == MAX_ADDRESSES_PER_PEER
    assert chosen[0] == "/ip4/10.0.0.1/tcp/1"
