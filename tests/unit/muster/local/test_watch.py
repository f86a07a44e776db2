"""`muster up --watch`: how the values of a template are read from the running definition."""

import pytest

from muster.local.watch import read_variables


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
