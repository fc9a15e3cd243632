"""Postfix's access(5) and sendmail's access_db, import and export: keys and their order."""
