"""Decides the mail of a log by one ruleset, or by two."""
