"""Measures the cost of policyd, compared with the floor and other programs: `make bench` (docs/performance.md)."""
