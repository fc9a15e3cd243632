"""Asks DNS: reverse DNS of clients and DNS lists, over aiodns; cached, bounded, within one deadline."""
