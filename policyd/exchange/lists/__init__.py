"""Imports plain lists, rspamd maps, lists of Spamhaus and postgrey, and whois answers.

Exports plain lists, rspamd maps, CSV and JSON.
"""
