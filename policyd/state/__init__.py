"""Stores counters and greylisting: in the process, in a SQLite file, or in Valkey for several hosts."""
