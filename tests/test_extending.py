"""docs/extending.md: the code it shows is the code that is tested, and it works as the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "extending.md"
SHOWN = re.compile(r"<!-- (tests/\w+\.py) -->\n```python\n(.*?)```\n", re.DOTALL)


@pytest.mark.parametrize(("file", "code"), SHOWN.findall(PAGE.read_text(encoding="utf-8")))
def test_the_page_shows_the_tested_code(file: str, code: str) -> None:
    assert (ROOT / file).read_text(encoding="utf-8") == code
