"""Reads mail logs and decision logs: from lines of text to transactions and decisions."""
