"""Reads mail logs and decision logs: turns lines of text into transactions and decisions."""
