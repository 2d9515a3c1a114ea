"""What the local API's client raises, and how names go into its paths; apart, because it is quick to import."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from ..errors import NetworkingError

__all__ = ["ApiError", "quote_segment"]

ERROR_NAMESPACE = "urn:sdnet:error:"


class ApiError(NetworkingError):
    """The node answered with a problem document (RFC 9457)."""

    code: str  # type: ignore[misc]  # the answer's own, not the class's
    http_status: int  # type: ignore[misc]
    exit_code: int  # type: ignore[misc]

    def __init__(
        self, detail: str, *, code: str = "networking", http_status: int = 500, exit_code: int = 1, title: str = ""
    ) -> None:
        super().__init__(detail)
        self.title = title or code
        self.code = code
        self.http_status = http_status
        self.exit_code = exit_code

    @classmethod
    def from_problem(cls, document: Any, http_status: int) -> ApiError:
        """Read a problem document; what is missing gets a plain default."""
        values = document if isinstance(document, dict) else {}
        detail = values.get("detail") or values.get("title") or f"The node answered with HTTP status {http_status}."
        exit_code = values.get("exit_code", 1)
        return cls(
            str(detail),
            code=str(values.get("type", "")).removeprefix(ERROR_NAMESPACE) or "networking",
            http_status=int(values.get("status", http_status)),
            exit_code=exit_code if isinstance(exit_code, int) and 1 <= exit_code <= 4 else 1,
            title=str(values.get("title") or ""),
        )


def quote_segment(text: str) -> str:
    """Encode a text, such as a device's name, as one segment of a path."""
    # A segment of dots alone would be removed as "here" or "one up" on its way.
    return quote(text, safe="") if text.strip(".") else text.replace(".", "%2E")
