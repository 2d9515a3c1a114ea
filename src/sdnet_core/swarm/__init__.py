"""Peers and streams: the interface (`abc`), the real swarm (`libp2p`) and the one in memory (`memory`)."""
