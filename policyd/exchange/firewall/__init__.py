"""Firewall rules, import and export: iptables, nftables and ipset."""
