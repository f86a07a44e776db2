"""The module's page says what the module takes and gives."""

import pytest

from docs.terraform_tables import README, generated


def test_tables_are_those_of_the_module() -> None:
    assert README.read_text() == generated(README.read_text()), "run `make docs`"


def test_a_page_without_its_markers_is_refused() -> None:
    with pytest.raises(SystemExit, match="begin inputs"):
        generated("")
