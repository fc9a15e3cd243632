"""The pure heart: no asyncio, sockets, files, clocks or logging. Everything is passed in."""
