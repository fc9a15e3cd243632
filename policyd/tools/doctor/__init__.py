"""Examines Postfix beside the daemon, and asks the daemon a question."""
