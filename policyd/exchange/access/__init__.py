"""Imports and exports Postfix's access(5) tables and sendmail's access_db, whose most specific key decides."""
