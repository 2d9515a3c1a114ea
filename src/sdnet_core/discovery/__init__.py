"""Finding peers: sources of candidates, and the race between them."""
