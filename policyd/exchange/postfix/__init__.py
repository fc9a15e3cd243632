"""Imports Postfix's cidr:, pcre: and regexp: tables, DNS lists of main.cf and postfwd's rules; exports cidr: tables."""
