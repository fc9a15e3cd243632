"""The daemon: sockets, files, signals and clocks around the pure core."""
