"""What policyd costs, measured beside the floor and beside its peers: `make bench` (docs/performance.md)."""
