"""Keeps lists current: downloads them (source), checks each new copy (guards), and puts it in place (run)."""
