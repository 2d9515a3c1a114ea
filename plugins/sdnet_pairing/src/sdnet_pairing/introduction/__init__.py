"""Introductions: a device that is paired with two others vouches for each to the other, and they pair.

Wire protocol ``/sdnet/introduction/1``, described in ``docs/protocol/introduction.md``.
"""
