"""`muster up --watch`: how the values of a template are read from the running definition."""

from pathlib import Path

import pytest

from muster.errors import StackError
from muster.local.watch import _text, read_variables


@pytest.mark.parametrize(
    ("template", "rendered", "found"),
    [
        ({"A": "${one}"}, {"A": "arn:x"}, {"one": "arn:x"}),
        ({"A": [{"B": "{% ${n} + 1 %}"}]}, {"A": [{"B": "{% 250 + 1 %}"}]}, {"n": "250"}),
        ({"A": "${one}/${two}"}, {"A": "a/b"}, {"one": "a", "two": "b"}),
        ({"A": "plain", "B": 1}, {"A": "plain", "B": 1}, {}),
        ({"A": "${one}", "New": "${two}"}, {"A": "x"}, {"one": "x"}),
        ({"A": "other ${one}"}, {"A": "x"}, {}),
    ],
)
def test_values_are_read_where_template_and_definition_agree(
    template: object, rendered: object, found: dict[str, str]
) -> None:
    read: dict[str, str] = {}
    read_variables(template, rendered, read)
    assert read == found


def test_a_file_that_is_not_utf_8_or_vanished_is_an_error_of_the_watch(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(StackError, match=r"x\.json cannot be read: No such file"):
        _text("x.json", path)
    path.write_bytes(b"\xff")
    with pytest.raises(StackError, match=r"x\.json is not UTF-8"):
        _text("x.json", path)
