"""Asks who a client is: forward-confirmed reverse DNS over aiodns, cached, bounded, within one deadline."""
