"""Proposes rules from a log."""
