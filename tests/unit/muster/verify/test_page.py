"""docs/verify.md lists every check."""

import re
from pathlib import Path

from muster.verify import CHECKS

PAGE = Path(__file__).parents[4] / "docs" / "verify.md"


def test_the_page_describes_every_check_in_order() -> None:
    table = PAGE.read_text().partition("## What is checked")[2].partition("\n\nNot checked")[0]
    first = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    assert [name for cell in first for name in re.findall(r"`([^`]+)`", cell)] == [c.name for c in CHECKS]
