"""Postfix's cidr, pcre and regexp tables, and postfwd rules."""
