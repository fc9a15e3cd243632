"""Decides requests. Pure: no asyncio, sockets, files, clocks or logging; everything is passed in."""
