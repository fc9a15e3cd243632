"""The control socket: the words that the daemon and the commands exchange over it, and the commands' end of it."""
