"""Builds the tables of a ruleset from lists, keeps them from load to load, and patches them."""
