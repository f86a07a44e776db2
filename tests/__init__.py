"""Muster's tests; README.md says how to run them."""

import pytest

# Before they are imported, so that their assertions explain themselves as those of tests do.
pytest.register_assert_rewrite("tests.support", "tests.integration", "tests.e2e")
