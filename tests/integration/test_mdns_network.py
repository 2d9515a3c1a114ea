"""mDNS with its default interfaces, between two machines: network namespaces joined by a cable of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

UNSHARE = ["unshare", "--net"] if hasattr(os, "geteuid") and os.geteuid() == 0 else ["unshare", "-Urn"]

CABLE = """
set -e
ip link set lo up
unshare --net sleep 60 >/dev/null 2>&1 & other=$!
trap 'kill $other' EXIT
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/$$/ns/net)" ]; do sleep 0.01; done
ip link add here type veth peer name there netns $other
ip addr add 198.51.100.1/24 dev here
ip addr add 2001:db8::1/64 dev here nodad
ip link set here addrgenmode none up
nsenter --net --target $other sh -e -c '
    ip link set lo up
    ip addr add 198.51.100.2/24 dev there
    ip addr add 2001:db8::2/64 dev there nodad
    ip link set there addrgenmode none up
'
python=$1 script=$2
nsenter --net --target $other "$python" -c "$script" there 198.51.100.2 2001:db8::2 4 & there=$!
"$python" -c "$script" neighbour 198.51.100.1 2001:db8::1 6 & neighbour=$!
"$python" -c "$script" here 198.51.100.1 2001:db8::1 6
wait $there $neighbour
"""

NODE = """
import json, os, sys
import anyio
from sdnet_core.clock import SystemClock, SystemRandomness
from sdnet_core.discovery.candidates import Discovery
from sdnet_core.discovery.mdns import MdnsDiscovery
from sdnet_core.identity import NetworkIdentity

async def main(name, ipv4, ipv6, wanted):
    peer_id = NetworkIdentity.generate(SystemRandomness()).peer_id
    discovery = Discovery([MdnsDiscovery(peer_id, SystemClock(), SystemRandomness())], SystemClock(), peer_id=peer_id)
    port = {"here": 1, "neighbour": 2, "there": 3}[name]
    discovery.set_addresses(f"{ip}/tcp/{port}" for ip in (f"/ip4/{ipv4}", "/ip4/127.0.0.1", f"/ip6/{ipv6}", "/ip6/::1"))
    found = {}
    async with discovery.run(), discovery.subscribe() as candidates:
        with anyio.move_on_after(15):
            while sum(map(len, found.values())) < int(wanted):
                candidate = await candidates.receive()
                found[candidate.peer_id] = candidate.addresses
        # Stay until the others have found this one too.
        await anyio.sleep(2)
    # One write, as all of them write to the same pipe.
    os.write(1, json.dumps({name: sorted(found.values())}).encode() + b"\\n")

anyio.run(main, *sys.argv[1:5], backend="trio")
"""


def can_make_networks() -> bool:
    if sys.platform != "linux" or not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return False
    attempt = [*UNSHARE, "ip", "link", "add", "here", "type", "veth", "peer", "name", "there"]
    return subprocess.run(attempt, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_make_networks(), reason="network namespaces cannot be made here")
def test_neighbours_and_machines_on_one_network_find_each_other() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [*UNSHARE, "sh", "-c", CABLE, "sh", sys.executable, NODE]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    found = {name: addresses for line in result.stdout.splitlines() for name, addresses in json.loads(line).items()}
    assert set(found) == {"here", "neighbour", "there"}

    def outside(ip: str, ip6: str, port: int) -> set[str]:
        return {f"/ip4/{ip}/tcp/{port}", f"/ip6/{ip6}/tcp/{port}"}

    def inside(port: int) -> set[str]:
        return {f"/ip4/127.0.0.1/tcp/{port}", f"/ip6/::1/tcp/{port}"}

    # A neighbour on the same machine is found at its loopback addresses too, a machine elsewhere never is.
    by_port = {
        name: {address.rpartition("/")[2]: set(addresses) for addresses in peers for address in addresses[:1]}
        for name, peers in found.items()
    }
    assert by_port["there"] == {
        "1": outside("198.51.100.1", "2001:db8::1", 1),
        "2": outside("198.51.100.1", "2001:db8::1", 2),
    }
    assert by_port["here"]["3"] == by_port["neighbour"]["3"] == outside("198.51.100.2", "2001:db8::2", 3)
    assert by_port["here"]["2"] == inside(2) | outside("198.51.100.1", "2001:db8::1", 2)
    assert by_port["neighbour"]["1"] == inside(1) | outside("198.51.100.1", "2001:db8::1", 1)
