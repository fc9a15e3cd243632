"""Decides the mails of a log by one ruleset, or by two."""
