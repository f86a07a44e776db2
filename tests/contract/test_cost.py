"""The figures in docs/cost.md follow from the prices, the measurements and the code."""

import pytest

from bench import cost
from muster import client
from tests.contract.test_asl import ROOT


def test_the_page_is_up_to_date() -> None:
    assert cost.PAGE.read_text() == cost.generated(cost.PAGE.read_text()), "run `make docs`"


def test_every_price_is_used() -> None:
    text = "".join(path.read_text() for path in (ROOT / "bench").glob("*.py"))
    assert [name for name in cost.PRICES if name != "source" and f'["{name}"]' not in text] == []


def test_counts_use_the_defaults_of_the_client() -> None:
    assert cost.Use(1, 1).heartbeat == client.HEARTBEAT_SECONDS
    assert len(cost.measured()) == 3


def test_costs_are_linear_in_the_number_of_people() -> None:
    one, ten = (cost.monthly(cost.Use(people, 10)) for people in (10_000, 100_000))
    fixed = {"metrics, alarms, dashboard", "secret, and a key of your own"}
    for line in one.keys() - fixed - {"broadcasts: all the rest", "tables at rest, recovery included"}:
        assert ten[line] == pytest.approx(10 * one[line])
    assert all(one[line] == ten[line] for line in fixed)
