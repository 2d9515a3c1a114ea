"""Where the CPU time of the swarm goes: the shares of its parts, from the profiles of both sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["WORK", "as_markdown", "condense"]

WORK = {"bulk_one": "bulk", "new_stream": "requests on new streams"}
"""What is profiled, by the names of :func:`benchmarks.swarm_cases.profile`."""

# The first that a file's name begins with; a call into C counts for the line that makes it.
_PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("sockets: system calls and trio's wrappers", ("trio/_socket", "trio/_highlevel", "trio/_core/_io", "libp2p/io/")),
    ("trio: tasks and waking them", ("trio/", "outcome/", "sortedcontainers/")),
    ("Noise: ChaCha20-Poly1305 and its messages", ("sdnet_core/swarm/noise",)),
    ("Yamux: frames, windows, its two tasks", ("sdnet_core/swarm/yamux",)),
    ("multistream-select on streams", ("sdnet_core/swarm/negotiation",)),
    ("QUIC: ours", ("sdnet_core/swarm/quic",)),
    ("QUIC: aioquic", ("aioquic/",)),
    ("swarm: connections, streams, handlers", ("sdnet_core/", "anyio/")),
    ("py-libp2p", ("libp2p/", "multiaddr/")),
    ("the benchmark itself", ("benchmarks/",)),
)
_OTHER = "the rest (standard library)"


def condense(files: Mapping[str, float]) -> dict[str, float]:
    """Shares of the parts.

    :param files: shares of the files.
    """
    shares: dict[str, float] = {}
    for name, share in files.items():
        part = next((part for part, beginnings in _PARTS if name.startswith(beginnings)), _OTHER)
        shares[part] = shares.get(part, 0.0) + share
    return shares


def as_markdown(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The shares as a table.

    :param found: by the names in :data:`WORK`, the profiles of the ``listener`` and the ``dialler``.
    """
    columns = [
        (f"{WORK[case]}, {role}", condense(profiles[side]["files"]), profiles[side]["samples"])
        for case, profiles in found.items()
        for side, role in (
            ("dialler", "sender" if case == "bulk_one" else "asking side"),
            ("listener", "receiver" if case == "bulk_one" else "answering side"),
        )
    ]
    lines = [f"| share of CPU time | {' | '.join(name for name, _, _ in columns)} |", f"|---|{'--:|' * len(columns)}"]
    for part in (*(part for part, _ in _PARTS), _OTHER):
        shares = [shares.get(part, 0.0) for _, shares, _ in columns]
        if max(shares) >= 0.005:
            lines.append(f"| {part} | {' | '.join(f'{100 * share:.0f} %' for share in shares)} |")
    lines.append(f"| samples | {' | '.join(f'{samples:,}' for _, _, samples in columns)} |")
    return lines
