"""Builds the tables of a ruleset from lists, and keeps or patches them when the ruleset is loaded again."""
