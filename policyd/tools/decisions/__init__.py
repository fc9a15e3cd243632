"""Reads logged decisions and mails: find, tail, lookup, abuse report."""
