"""Lists and registries: plain lists, Spamhaus DROP, whois, rspamd maps, CSV and JSON."""
