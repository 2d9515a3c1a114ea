"""Paired devices: what is kept of them (`records`), the state machine (`registry`), live connections (`connection`),
the supervisors that keep them connected (`manager`), and what waits to be sent (`outbox`)."""
