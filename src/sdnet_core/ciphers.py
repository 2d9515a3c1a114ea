"""Which AEAD is the faster on this machine; only a measurement knows, since it depends on the processor."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

__all__ = ["aes_is_faster"]

_DATA = bytes(65536)


@functools.cache
def aes_is_faster(timer: Callable[[], float] = time.perf_counter, *, rounds: int = 8) -> bool:
    """Measure AES-256-GCM beside ChaCha20-Poly1305; takes about a millisecond, and is done once.

    :param timer: seconds, of any origin.
    :param rounds: how often 64 KiB are sealed; the best time counts, so that a busy machine decides little.
    """
    target = memoryview(bytearray(len(_DATA) + 16))

    def best_time(cipher: AESGCM | ChaCha20Poly1305) -> float:
        times = []
        for number in range(rounds):
            start = timer()
            cipher.encrypt_into(number.to_bytes(12, "big"), _DATA, b"", target)
            times.append(timer() - start)
        return min(times)

    return best_time(AESGCM(bytes(32))) < best_time(ChaCha20Poly1305(bytes(32)))
