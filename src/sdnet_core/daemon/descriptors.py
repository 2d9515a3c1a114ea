"""How many files and connections the process may have open: as many as the settings need, where the system allows."""

from __future__ import annotations

__all__ = ["allow_connections"]

PER_CONNECTION = 2
"""While a better path takes over, or both sides have dialled, a device has two connections for a moment."""
SPARE = 512
"""For the store, the log, the local API, files that are sent, and dials that are under way."""


def allow_connections(connections: int) -> str:
    """Raise the limit that many systems put at 1,024, or at 256, as far as this many connections need it.

    :returns: what to tell a person if the system does not allow so many; empty if all is well.
    """
    try:
        import resource
    except ImportError:  # not on Windows, which has no such limit
        return ""
    wanted = SPARE + PER_CONNECTION * connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return ""
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (ValueError, OSError):
        allowed = soft  # macOS has a limit below what it says
    if allowed >= wanted:
        return ""
    return (
        f"The system lets this process open {allowed:,} files; {connections:,} connections may need {wanted:,}. "
        "Raise the limit (ulimit -n, LimitNOFILE), or lower max_connections."
    )
