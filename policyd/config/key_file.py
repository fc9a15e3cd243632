"""Reads key files, whose first line replaces `{key}` in the zone of a DNS list or in the URL of a list or database."""

from __future__ import annotations

from policyd.config.files import read_file

# The placeholder for the first line of `key_file`.
KEY = "{key}"

# Maximum bytes of a key file; a longer file is surely another file.
MAX_KEY_BYTES = 64 << 10


def read_first_line(path: str) -> str:
    """Returns the first line of a key file, without blanks around it. Raises UnreadableError and OversizedError."""
    content = read_file(path, MAX_KEY_BYTES)
    return content.decode("utf-8", "replace").lstrip("\ufeff").partition("\n")[0].strip()
