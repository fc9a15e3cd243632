"""Reads settings and rules, all or nothing, with every error at its file, line and column."""
