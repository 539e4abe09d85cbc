"""The README: its recipes run, and its support matrix is what the backends declare."""

from __future__ import annotations

import re
from pathlib import Path

from fastfuse.info import support_matrix

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_recipes_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.partition("## Recipes")[2], re.DOTALL)
    assert len(blocks) > 5
    exec("\n".join(blocks), {})


def test_support_matrix_is_up_to_date() -> None:
    assert support_matrix() in README, "paste the output of `fastfuse info --matrix`"
