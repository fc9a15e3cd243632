"""The control socket: its requests and answers, and the client that commands use."""
