"""Keeps a library small: forgets batches and deletions that every member has."""

from __future__ import annotations

from .operations import Role
from .standing import NO_HEAD, View
from .transaction import Transaction
from .vectors import Vector, minimum

__all__ = ["forget_deletions", "prune_log", "stable_vector", "unacknowledged"]

_STEP = 2000


def stable_vector(view: View, device: bytes) -> dict[bytes, int]:
    """What every member is known to have, by what each has signed.

    :param device: ours.
    """
    vectors: list[Vector] = []
    for member in view.members.members():
        if member.device == device:
            vectors.append(view.vector)
        else:
            head = view.heads.get(member.device, NO_HEAD)
            vectors.append({**head.seen, member.device: head.sequence})
    return minimum(vectors)


def unacknowledged(view: View, device: bytes) -> int:
    """How many batches with operations we have from others that we have not said we have."""
    ours = view.heads.get(device, NO_HEAD)
    return sum(
        max(0, head.written - ours.seen.get(author, 0)) for author, head in view.heads.items() if author != device
    )


def prune_log(transaction: Transaction, *, keep: int) -> bool:
    """Forget batches that every member has, some at a time.

    :param keep: how many of each author stay all the same, for members who are invited next.
    :returns: whether there is more to forget.
    """
    store, more = transaction.store, False
    if store.loading or store.members.role(store.device) is Role.NONE:
        return False
    for author, sequence in stable_vector(store.view(), store.device).items():
        head = store.heads.get(author, NO_HEAD)
        target = min(sequence, head.sequence - keep)
        if target <= head.base:
            continue
        base = min(target, head.base + _STEP)
        more = more or base < target
        store.db.execute("DELETE FROM log WHERE author = ? AND sequence <= ?", (store.numbers[author], base))
        store.set_base(author, base)
    return more


def forget_deletions(transaction: Transaction, after: bytes) -> bytes | None:
    """Forget deletions that every member has, some at a time.

    :param after: begin behind this key.
    :returns: where to go on; None if that was the last.
    """
    store = transaction.store
    if store.loading or store.members.role(store.device) is Role.NONE:
        return None
    stable = stable_vector(store.view(), store.device)
    rows = store.db.execute(
        "SELECT key FROM entry WHERE key > ? AND flags & 4 ORDER BY key LIMIT ?", (after, _STEP)
    ).fetchall()
    keys = [row[0] for row in rows]
    transaction.prefetch(keys)
    for key in keys:
        state = transaction.state(key)
        if state is None or state.fields:
            continue
        if all(write.sequence <= stable.get(write.author, 0) for write in state.deletions):
            transaction.replace_state(key, None)
    return keys[-1] if len(keys) == _STEP else None
