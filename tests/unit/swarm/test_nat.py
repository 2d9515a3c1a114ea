"""A port on the router: given, refused, late, nonsense. The router's end of miniupnpc is played by the test."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest

from sdnet_core.swarm import nat
from sdnet_core.swarm.nat import PortMapper

pytestmark = pytest.mark.anyio


class Router:
    """miniupnpc's client, with a router behind it that does what the test wants."""

    lanaddr = "192.168.1.2"

    def __init__(self, outside: str = "198.51.100.7", refused: int = 0, error: bool = False) -> None:
        self.outside = outside
        self.refused = refused
        self.error = error
        self.mapped: dict[int, tuple[Any, ...]] = {}
        self.silent: threading.Event | None = None

    def discover(self) -> int:
        if self.silent is not None:
            self.silent.wait(30)
        if self.error:
            raise Exception("Miniupnpc HTTP error")
        return 1

    def selectigd(self) -> str:
        return "http://192.168.1.1"

    def externalipaddress(self) -> str:
        return self.outside

    def addportmapping(self, port: int, *rest: Any) -> bool:
        if self.refused:
            self.refused -= 1
            raise Exception("ConflictInMappingEntry")
        self.mapped[port] = rest
        return True

    def deleteportmapping(self, port: int, _: str) -> bool:
        del self.mapped[port]
        return True


async def first(router: Router | None, *, seen_as: str = "198.51.100.7") -> tuple[str | None, PortMapper]:
    """Run a mapper until it has settled, then end it; gives the address that it had."""
    changed = anyio.Event()
    mapper = PortMapper(lambda: 4242, changed.set, lambda ip: ip == seen_as, client=lambda: router)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(mapper.run)
        with anyio.move_on_after(1.5):
            await changed.wait()
        address = mapper.address
        tasks.cancel_scope.cancel()
    return address, mapper


async def test_the_port_is_had_and_given_back() -> None:
    router = Router()
    address, mapper = await first(router)
    assert address == "/ip4/198.51.100.7/tcp/4242"
    assert mapper.address is None
    assert router.mapped == {}


async def test_another_port_does_when_that_one_is_taken() -> None:
    address, _ = await first(Router(refused=2))
    assert address is not None
    assert not address.endswith("/4242")


async def test_a_router_behind_another_one_is_of_no_use() -> None:
    router = Router(outside="10.0.0.5")
    assert (await first(router))[0] is None
    assert router.mapped == {}


@pytest.mark.parametrize("router", [None, Router(error=True), Router(outside="nonsense"), Router(refused=99)])
async def test_no_router_is_no_trouble(router: Router | None) -> None:
    assert (await first(router))[0] is None


async def test_a_router_that_never_answers_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nat, "STEP_TIMEOUT_S", 0.1)
    router = Router()
    router.silent = threading.Event()
    with anyio.fail_after(20):
        assert (await first(router))[0] is None
    router.silent.set()
