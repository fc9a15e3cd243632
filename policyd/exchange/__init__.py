"""Imports other systems' lists and tables, and exports rules and lists in the formats of other systems.

Each format has a reader, a writer or both. A reader takes lines and returns an `Imported`; a writer takes rows and
returns text (`policyd.exchange.model`). Both report everything that they cannot convert, so nothing is left out
silently.
"""
