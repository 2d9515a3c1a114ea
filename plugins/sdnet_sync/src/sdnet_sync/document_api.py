"""The routes of documents in the local API, under ``/v1/sync``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from sdnet_core import ApiRequest, Route
from sdnet_core.errors import InvalidRequestError

from .library import Library

__all__ = ["DocumentApi"]

_Position = Annotated[int, msgspec.Meta(ge=0)]


class _Insert(msgspec.Struct, forbid_unknown_fields=True):
    at: _Position
    text: str


class _Erase(msgspec.Struct, forbid_unknown_fields=True):
    at: _Position
    length: _Position


class _Edit(msgspec.Struct, forbid_unknown_fields=True):
    kind: str
    id: str
    field: str = "document"
    erase: _Erase | None = None
    insert: _Insert | None = None
    set: dict[str, str | int | float | bool | None] = {}
    unset: list[str] = []


class DocumentApi:
    """The routes.

    :param find: gives a library by name, id or prefix.
    """

    def __init__(self, find: Callable[[str], Library]) -> None:
        self._find = find

    def routes(self) -> list[Route]:
        """All of them."""
        path = "/libraries/{library}/document"
        return [
            Route(method="GET", path=path, endpoint=self.read, summary="The text and the map of a document"),
            Route(method="POST", path=path, endpoint=self.edit, summary="Edit a document"),
        ]

    async def read(self, request: ApiRequest) -> dict[str, Any]:
        """Query: ``kind``, ``id``, ``field``."""
        query = request.query
        if "kind" not in query or "id" not in query:
            raise InvalidRequestError("Give kind and id.")
        library = self._find(request.path["library"])
        async with library.document(query["kind"], query["id"], query.get("field", "document")) as document:
            return {"text": str(document.text()), "map": document.map().to_py()}

    async def edit(self, request: ApiRequest) -> dict[str, Any]:
        """``{kind, id, field?, erase?: {at, length}, insert?: {at, text}, set?: {key: value}, unset?: [key]}``.

        Positions count bytes of the text in UTF-8, as pycrdt does. What is erased goes first.
        """
        body, library = request.body_as(_Edit), self._find(request.path["library"])
        async with library.document(body.kind, body.id, body.field) as document:
            text, fields = document.text(), document.map()
            length = len(str(text).encode())
            if body.erase is not None and body.erase.at + body.erase.length > length:
                raise InvalidRequestError(f"The text ends at {length}.")
            if body.insert is not None and body.insert.at > length - (body.erase.length if body.erase else 0):
                raise InvalidRequestError("That is behind the end of the text.")
            with document.doc.transaction():
                if body.erase is not None and body.erase.length:
                    del text[body.erase.at : body.erase.at + body.erase.length]
                if body.insert is not None:
                    text.insert(body.insert.at, body.insert.text)
                for key, value in body.set.items():
                    fields[key] = value
                for key in body.unset:
                    fields.pop(key, None)
            await document.flush()
            return {"text": str(text), "map": fields.to_py()}
