"""Keeps memory: in the process, in SQLite behind it, or in Valkey for several hosts."""
