"""Lists and registries: plain lists, Spamhaus DROP, postgrey, whois, rspamd maps, CSV and JSON."""
