"""Imports other systems' lists and tables as rules or entries, and exports to them; one file for each format.

A reader takes lines and returns an `Imported`; a writer takes rows and returns text (`policyd.exchange.model`). Both
record in a `Report` what the other format cannot express, so nothing is left out silently.
"""
