"""Statistics of a decision log, as text, JSON or a page for a browser."""
