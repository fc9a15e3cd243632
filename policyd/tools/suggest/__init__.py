"""Proposes rules for the mails that a log shows."""
