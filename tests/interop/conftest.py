"""Whether the foreign peers can be run here."""

from __future__ import annotations

import os

import pytest

from tests.interop.js_setup import UnavailableError, prepare

collect_ignore = ["js"]

REQUIRED = "SDNET_INTEROP"
"""Set to ``required`` in the environment, a peer that cannot be run is a failure instead of a skipped test."""


@pytest.fixture(scope="session")
def node_command() -> tuple[str, ...]:
    """The command that runs ``node``, with the packages of the js-libp2p peer installed."""
    try:
        return prepare()
    except UnavailableError as reason:
        if os.environ.get(REQUIRED) == "required":
            pytest.fail(f"the js-libp2p peer cannot be run: {reason}", pytrace=False)
        pytest.skip(f"the js-libp2p peer cannot be run: {reason}")
