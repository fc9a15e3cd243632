"""The tables of a ruleset: built from lists, kept from load to load, and patched."""
