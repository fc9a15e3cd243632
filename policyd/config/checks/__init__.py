"""Checks a ruleset after reading: for rules that never match or are unreachable, likely mistakes, and failing tests."""
