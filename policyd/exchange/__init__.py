"""Imports other systems' lists and tables, and exports rules and lists to them. Each format has its own file.

A reader takes lines and returns an `Imported`; a writer takes rows and returns text (`policyd.exchange.model`). Both
report everything that the other format cannot express, so nothing is left out silently.
"""
