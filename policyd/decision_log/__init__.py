"""Writes and reads decision log lines. Pure; the format is defined only here."""
