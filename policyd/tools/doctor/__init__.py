"""Checks of `policyd doctor`: Postfix, socket and daemon, databases, DNS lists and the shared memory."""
