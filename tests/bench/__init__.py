"""Measures the cost of policyd beside the floor and its peers: `make bench` (docs/performance.md)."""
