"""Proposes rules from what a log shows."""
