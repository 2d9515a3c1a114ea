"""Routes of the local API about what protects the data at rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from ..core_protection import KDFS
from ..hookspecs import ApiRequest, Route
from ..storage import KeyFile, Passphrase

if TYPE_CHECKING:
    from ..core import NetworkingCore

__all__ = ["ProtectionRoutes"]

_Secret = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class _ProtectionBody(msgspec.Struct, forbid_unknown_fields=True):
    """``passphrase`` is the new one, None for the key file; ``current`` the one before."""

    passphrase: _Secret | None
    current: _Secret | None = None
    kdf: Literal["pbkdf2", "argon2id"] | None = None


class ProtectionRoutes:
    """They all act on one node."""

    def __init__(self, core: NetworkingCore) -> None:
        self._core = core

    def routes(self) -> list[Route]:
        """All of them, below ``/v1``."""
        return [
            Route(method="GET", path="/protection", endpoint=self.show, summary="What protects the data at rest"),
            Route(method="POST", path="/protection", endpoint=self.change, summary="Set or remove the passphrase"),
        ]

    async def show(self, request: ApiRequest) -> Any:
        return self._core.protection.to_dict()

    async def change(self, request: ApiRequest) -> Any:
        body = request.body_as(_ProtectionBody)
        new = (
            KeyFile() if body.passphrase is None else Passphrase(body.passphrase, KDFS[body.kdf] if body.kdf else None)
        )
        current = None if body.current is None else Passphrase(body.current)
        return (await self._core.change_protection(new, current=current)).to_dict()
