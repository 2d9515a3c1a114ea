"""The small parts of the swarm: patches, the stand-in for fastecdsa, listen addresses."""

from __future__ import annotations

import importlib
import socket
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

from sdnet_core.swarm import _fastecdsa, hardening, interfaces

# isort: split
import libp2p.protocol_muxer.multiselect_communicator as communicator_module
from libp2p.exceptions import ParseError
from libp2p.io.abc import Reader
from libp2p.io.exceptions import IncompleteReadError


class Source(Reader):
    """Gives out what it was made with, and counts what was asked of it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.largest_request = 0

    async def read(self, n: int | None = None) -> bytes:
        size = len(self.data) if n is None else n
        self.largest_request = max(self.largest_request, size)
        piece, self.data = self.data[:size], self.data[size:]
        return piece


def line(text: bytes) -> bytes:
    length = len(text) + 1
    prefix = bytes([length]) if length < 128 else bytes([length & 0x7F | 0x80, length >> 7])
    return prefix + text + b"\n"


@pytest.mark.anyio
class TestBoundedMultistream:
    async def test_a_line(self) -> None:
        assert await hardening.read_delim_bounded(Source(line(b"/noise"))) == b"/noise"
        assert await hardening.read_delim_bounded(Source(line(b"x" * 1000))) == b"x" * 1000

    @pytest.mark.parametrize(
        "wire",
        [
            b"\xff\xff\xff\xff\x07" + b"x" * 100,
            b"\xff" * 20,
            b"\x00",
            b"\x03abc",
            b"\x03\xff\xfe\n",
        ],
        ids=["2-gib", "endless-length", "empty", "no-newline", "not-text"],
    )
    async def test_refused_before_anything_is_allocated(self, wire: bytes) -> None:
        source = Source(wire)
        with pytest.raises(ParseError):
            await hardening.read_delim_bounded(source)
        assert source.largest_request <= 1024

    async def test_cut_short(self) -> None:
        with pytest.raises(IncompleteReadError):
            await hardening.read_delim_bounded(Source(b"\x10abc"))


class TestPatches:
    def test_they_are_in_place_and_applying_again_does_no_harm(self) -> None:
        hardening.apply()
        hardening.apply()
        assert vars(communicator_module)["read_delim"] is hardening.read_delim_bounded

    def test_another_version_is_refused(self) -> None:
        with pytest.raises(hardening.PatchTargetChangedError, match=r"0\.9\.0"):
            hardening.check_version(lambda _: "0.9.0")

    def test_a_changed_target_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(communicator_module, "read_delim", lambda reader: b"")
        with pytest.raises(hardening.PatchTargetChangedError, match="read_delim"):
            hardening.apply()

    def test_a_missing_target_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr("libp2p.identity.identify.identify.AGENT_VERSION")
        with pytest.raises(hardening.PatchTargetChangedError, match="AGENT_VERSION"):
            hardening.set_agent_version("x")


class TestFastecdsaStandIn:
    def test_a_real_one_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = ModuleType("fastecdsa")
        monkeypatch.setitem(sys.modules, "fastecdsa", real)
        assert _fastecdsa.install() is False
        assert sys.modules["fastecdsa"] is real

    def test_p256_keys_are_refused_by_name(self) -> None:
        if not _fastecdsa.install():
            pytest.skip("The real fastecdsa is installed.")
        ecc: Any = importlib.import_module("libp2p.crypto.ecc")
        with pytest.raises(_fastecdsa.UnsupportedKeyError, match="P-256"):
            ecc.create_new_key_pair("P-256")
        with pytest.raises(_fastecdsa.UnsupportedKeyError, match="P-256"):
            ecc.ECCPublicKey.from_bytes(bytes(65), "P-256")


_WITHOUT_PACKAGES = """
import sys
for name in ("fastecdsa", "coincurve", "miniupnpc"):
    sys.modules[name] = None
import trio
from sdnet_core.swarm.libp2p import Libp2pSwarm
from sdnet_core.swarm._libp2p_imports import UnsupportedError
from libp2p.crypto.secp256k1 import Secp256k1PublicKey, create_new_key_pair

async def main():
    a, b = Libp2pSwarm(bytes(32)), Libp2pSwarm(bytes(range(32)))
    async with a.run(), b.run():
        await b.listen(["/ip4/127.0.0.1/tcp/0"])
        await a.dial(b.peer_id, b.addresses)

trio.run(main)
for refused in (create_new_key_pair, lambda: Secp256k1PublicKey.from_bytes(bytes(33))):
    try:
        refused()
    except UnsupportedError as exc:
        print(exc)
print("httpx._client" in sys.modules)
import httpx
print(httpx.URL("http://127.0.0.1/").host)
"""


def test_a_swarm_runs_without_the_packages_that_have_no_wheels() -> None:
    done = subprocess.run([sys.executable, "-c", _WITHOUT_PACKAGES], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    *refusals, loaded, host = done.stdout.splitlines()
    assert len(refusals) == 2
    assert all("coincurve" in refusal for refusal in refusals)
    assert (loaded, host) == ("False", "127.0.0.1")


class TestInterfaces:
    MACHINE = ("127.0.0.1", "::1", "192.0.2.7", "169.254.3.3", "fe80::1", "2001:db8::7", "198.51.100.4")

    @pytest.mark.parametrize(
        ("address", "expected"),
        [
            ("/ip4/0.0.0.0/tcp/4001", ["/ip4/192.0.2.7/tcp/4001", "/ip4/198.51.100.4/tcp/4001"]),
            ("/ip6/::/tcp/4001", ["/ip6/2001:db8::7/tcp/4001"]),
            ("/ip4/0.0.0.0/udp/4001/quic-v1", None),
            ("/ip4/127.0.0.1/tcp/4001", ["/ip4/127.0.0.1/tcp/4001"]),
        ],
    )
    def test_wildcards(self, address: str, expected: list[str] | None) -> None:
        result = interfaces.expand(address, lambda: self.MACHINE)
        if expected is None:
            assert all(text.endswith("/udp/4001/quic-v1") for text in result)
            assert len(result) == 2
        else:
            assert result == expected

    def test_loopback_is_better_than_nothing(self) -> None:
        assert interfaces.expand("/ip4/0.0.0.0/tcp/1", lambda: ("127.0.0.1", "::1")) == ["/ip4/127.0.0.1/tcp/1"]
        assert interfaces.expand("/ip6/::/tcp/1", lambda: ("127.0.0.1",)) == []

    def test_this_machine_has_loopback(self) -> None:
        assert "127.0.0.1" in interfaces.local_addresses()

    def test_a_port_in_use_and_a_free_one(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(interfaces.PortInUseError):
                interfaces.check_listen(f"/ip4/127.0.0.1/tcp/{port}")
        assert interfaces.check_listen("/ip4/127.0.0.1/tcp/0") is None

    def test_an_address_that_is_not_ours(self) -> None:
        assert interfaces.check_listen("/ip6/2001:db8::1/tcp/0")
        assert interfaces.check_listen("/ip4/192.0.2.254/tcp/0")


def test_what_only_auto_tls_needs_is_loaded_when_it_is_used() -> None:
    script = (
        "import sys; import sdnet_core.swarm.libp2p\n"
        "from libp2p.security.tls.autotls import broker\n"
        "late = {'urllib3', 'httpcore', 'httpx._client'}\n"
        "assert not late & set(sys.modules), late & set(sys.modules)\n"
        "assert callable(broker.requests.post)\n"
        "import requests.adapters, httpx\n"
        "assert issubclass(requests.exceptions.HTTPError, OSError) and isinstance(httpx.Client, type)\n"
        "assert {'urllib3', 'httpx._client'} <= set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
