"""Imports and exports the rules and sets of firewalls: iptables, nftables and ipset."""
