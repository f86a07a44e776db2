"""Muster's tests; CONTRIBUTING.md says what each folder tests."""

import pytest

# pytest rewrites assertions of test modules only: the helpers' are to explain themselves too.
pytest.register_assert_rewrite("tests.support")
