"""A finished small run, shared with the tests of the report."""

from tests.pipeline.viewing.conftest import made_run

__all__ = ["made_run"]
