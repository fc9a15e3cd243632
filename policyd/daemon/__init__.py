"""The daemon: sockets, DNS, files, signals and clocks around the pure core."""
