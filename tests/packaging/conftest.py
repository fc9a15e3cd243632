"""Makes the fixture `run` of tests/cli available to these tests."""

from tests.cli.conftest import run

__all__ = ["run"]
