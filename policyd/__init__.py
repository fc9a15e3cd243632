"""policyd: a policy daemon for Postfix."""

__version__ = "0.2.0"
