"""The format of a decision log line, in one place and pure: how it is written and how it is read."""
