import pytest

from sdnet_core import Access, Capability, ProtocolHandler, ProtocolSpec
from sdnet_core.errors import PluginError
from sdnet_core.protocols.registry import ProtocolRegistry


class Handler(ProtocolHandler):
    protocol_name = "echo"


def spec(**changes: object) -> ProtocolSpec:
    return ProtocolSpec(**{"protocol_name": "echo", "version": 1, "handler": Handler(), **changes})  # type: ignore[arg-type]


def test_a_protocol_is_found_by_id_and_by_name() -> None:
    registry = ProtocolRegistry()
    for version in (1, 3, 2):
        registry.register(spec(version=version, max_message_bytes=100), plugin="echo", distribution="sdnet-echo")
    found = registry.get("/sdnet/echo/2")
    assert found is not None
    assert found.spec.version == 2
    assert found.spec.handler.max_message_bytes == 100
    newest = registry.by_name("echo")
    assert newest is not None
    assert newest.spec.version == 3
    assert registry.by_name("other") is None
    assert len(registry.unregister("echo")) == 3
    assert registry.get("/sdnet/echo/2") is None


def test_a_duplicate_names_both_distributions() -> None:
    registry = ProtocolRegistry()
    registry.register(spec(), plugin="one", distribution="dist-one")
    with pytest.raises(PluginError, match=r"dist-one.*dist-two"):
        registry.register(spec(), plugin="two", distribution="dist-two")


@pytest.mark.parametrize("name", ["", "Echo", "a_b", "a--b", "-a", "a/b", "session", "x" * 65])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(PluginError):
        ProtocolRegistry().register(spec(protocol_name=name), plugin="p", distribution="d")


@pytest.mark.parametrize("change", ["version", "max_message_bytes", "max_streams", "max_streams_per_peer"])
def test_limits_below_one_are_refused(change: str) -> None:
    with pytest.raises(PluginError, match="at least 1"):
        ProtocolRegistry().register(spec(**{change: 0}), plugin="p", distribution="d")


def test_strangers_need_the_capability() -> None:
    with pytest.raises(PluginError, match="talk-to-strangers"):
        ProtocolRegistry().register(spec(access=Access.STRANGER), plugin="p", distribution="d")
    ProtocolRegistry().register(
        spec(access=Access.STRANGER, capabilities=frozenset({Capability.STRANGERS})), plugin="p", distribution="d"
    )
