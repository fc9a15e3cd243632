"""Looks at decisions that were logged: tail, lookup, abuse report."""
