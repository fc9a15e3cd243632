"""Postfix's access(5) and sendmail's access_db: keys, their order, both ways."""
