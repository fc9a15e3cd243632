"""Keeps lists current: gets them (source), judges each new copy (guards), and puts it in its place (run)."""
