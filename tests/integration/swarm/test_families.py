"""Machines that have only one of IPv4 and IPv6: what is missing is a warning, the other one works."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from typing import Any

import pytest

from sdnet_core.errors import TransportError
from sdnet_core.swarm import interfaces
from sdnet_core.swarm.libp2p import Libp2pSwarm

LISTEN = [
    "/ip4/127.0.0.1/tcp/0",
    "/ip6/::1/tcp/0",
    "/ip4/127.0.0.1/udp/0/quic-v1",
    "/ip6/::1/udp/0/quic-v1",
    "/ip4/127.0.0.1/tcp/0/ws",
    "/ip6/::1/tcp/0/ws",
]
PROGRAM = """
import json, logging, os, sys, trio
from sdnet_core.swarm.libp2p import Libp2pSwarm

said = []
class Keep(logging.Handler):
    def emit(self, record):
        said.append((record.levelname, record.getMessage()))
logging.getLogger("sdnet_core").addHandler(Keep())

async def echo(stream):
    async for data in stream:
        await stream.send(data)

async def main(listen):
    transports = ("tcp", "quic", "ws")
    a, b = Libp2pSwarm(os.urandom(32), transports=transports), Libp2pSwarm(os.urandom(32), transports=transports)
    used = []
    async with a.run(), b.run():
        b.set_stream_handler("/echo/1", echo)
        await b.listen(listen)
        addresses = list(b.addresses)
        for address in addresses:
            # The missing family stands first among the addresses and is in nobody's way.
            with trio.fail_after(60):
                await a.dial(b.peer_id, ["/ip6/::1/tcp/1", "/ip4/127.0.0.1/tcp/1", address])
                stream = await a.open_stream(b.peer_id, ["/echo/1"])
                await stream.send(b"works")
                assert await stream.receive() == b"works"
            used.append(a.remote_address(b.peer_id))
            await a.hang_up(b.peer_id)
            while b.is_connected(a.peer_id):
                await trio.sleep(0.01)
    print(json.dumps({"addresses": addresses, "used": used, "said": said}))

trio.run(main, json.loads(sys.argv[1]))
"""
WITHOUT = {
    "ip6": "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6",
    "ip4": "ip -4 addr flush dev lo; ip -4 route flush table local 2>/dev/null",
}


def in_namespace(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a network of its own, of which only loopback is up."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("There is no unshare or no ip here.")
    command = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--net", "sh", "-ec"]
    probe = subprocess.run([*command, "ip link set lo up"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"No network namespaces here: {probe.stderr.strip()}")
    return subprocess.run(
        [*command, f"ip link set lo up; {script}", "sh", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


@pytest.mark.parametrize("missing", ["ip4", "ip6"])
def test_a_machine_without_one_family(missing: str) -> None:
    run = in_namespace(
        WITHOUT[missing] + ' || true; exec "$1" -c "$2" "$3"', sys.executable, PROGRAM, json.dumps(LISTEN)
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    assert len(found["addresses"]) == 3
    assert not any(f"/{missing}/" in address for address in found["addresses"])
    assert found["used"] == found["addresses"]
    warnings = [text for level, text in found["said"] if level == "WARNING"]
    assert len([text for text in warnings if text.startswith(f"not listening on /{missing}/")]) == 3
    assert not [text for level, text in found["said"] if level in {"ERROR", "CRITICAL"}]


class _NoIpv6(socket.socket):
    """What a kernel that was built without IPv6 says."""

    def __init__(self, family: int = socket.AF_INET, *rest: Any) -> None:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        super().__init__(family, *rest)


@pytest.mark.anyio
@pytest.mark.libp2p
async def test_a_kernel_without_ipv6(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(interfaces.socket, "socket", _NoIpv6)
    swarm = Libp2pSwarm(os.urandom(32), transports=("tcp", "quic", "ws"))
    async with swarm.run():
        await swarm.listen(LISTEN)
        assert len(swarm.addresses) == 3
        with pytest.raises(TransportError, match="not supported"):
            await swarm.listen(["/ip6/::1/tcp/0"])
    assert caplog.text.count("not listening on /ip6/") == 3
