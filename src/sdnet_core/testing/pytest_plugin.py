"""Fixtures for tests of plugins and hosts; pytest finds them by itself once sdnet is installed.

Importing this module imports pytest and nothing of sdnet: a test run that uses no fixture pays nothing. The fixtures
with nodes are asynchronous: mark the test with ``@pytest.mark.anyio`` (anyio's own pytest plugin runs it).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from . import Daemon, LinkedNodes

__all__: list[str] = []


@pytest.fixture
def sdnet_plugins() -> Sequence[Any]:
    """The plugin classes of the nodes that the other fixtures make. Override it::

    @pytest.fixture
    def sdnet_plugins():
        return [EchoPlugin]
    """
    return ()


@pytest.fixture
def sdnet_settings() -> Mapping[str, Mapping[str, Any]]:
    """The settings of those nodes, by section. Override it as `sdnet_plugins`."""
    return {}


@pytest.fixture
async def sdnet_nodes(
    anyio_backend: object,
    tmp_path: Path,
    sdnet_plugins: Sequence[Any],
    sdnet_settings: Mapping[str, Mapping[str, Any]],
) -> AsyncIterator[LinkedNodes]:
    """Two nodes, paired and connected in memory: ``a, b = sdnet_nodes``."""
    from . import linked_nodes

    async with linked_nodes(2, plugins=sdnet_plugins, settings=sdnet_settings, home=tmp_path) as nodes:
        yield nodes


@pytest.fixture
async def sdnet_strangers(
    anyio_backend: object,
    tmp_path: Path,
    sdnet_plugins: Sequence[Any],
    sdnet_settings: Mapping[str, Mapping[str, Any]],
) -> AsyncIterator[LinkedNodes]:
    """Two nodes linked in memory that are not paired."""
    from . import linked_nodes

    async with linked_nodes(2, plugins=sdnet_plugins, settings=sdnet_settings, home=tmp_path, paired=False) as nodes:
        yield nodes


@pytest.fixture
def sdnet_daemons(tmp_path: Path) -> Iterator[Callable[..., tuple[Daemon, ...]]]:
    """Start daemons that are paired, with the plugins that are installed: ``alice, bob = sdnet_daemons()``."""
    with ExitStack() as stack:

        def start(*names: str, **environment: str) -> tuple[Daemon, ...]:
            from . import paired_daemons

            return stack.enter_context(paired_daemons(tmp_path, names or ("alice", "bob"), environment=environment))

        yield start
