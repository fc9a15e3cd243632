"""Counters and greylisting. Pure: time is passed in, and policyd.state stores counts and clients."""
