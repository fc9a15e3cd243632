"""Checks a ruleset that has been read: what can never match, is unreachable, looks wrong, or fails its tests."""
