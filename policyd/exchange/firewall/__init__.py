"""Firewall rules: iptables, nftables and ipset, both ways."""
