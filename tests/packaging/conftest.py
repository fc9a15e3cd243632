"""Fixtures of the command line's tests that these tests use as well."""

from tests.cli.conftest import run

__all__ = ["run"]
