"""Benchmarks: this project's parts beside their peers, in one run on one machine."""
