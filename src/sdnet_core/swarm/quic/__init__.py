"""Connections over QUIC (``/ip4/…/udp/…/quic-v1``), on aioquic's sans-I/O implementation."""
