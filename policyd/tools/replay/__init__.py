"""Judges the mail of a log by a ruleset, or by two."""
