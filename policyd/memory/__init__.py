"""Counters and greylisting, pure: time is passed in, and what they remember is kept by policyd.state."""
