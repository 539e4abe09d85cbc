"""The README: its recipes run, and its support matrix is what the backends declare."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_recipes_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.partition("## Recipes")[2], re.DOTALL)
    assert len(blocks) > 5
    exec("\n".join(blocks), {})


def test_support_matrix_is_up_to_date() -> None:
    """As a process without Triton's interpreter prints it."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "fastfuse", "info", "--matrix"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in README, "paste the output of `fastfuse info --matrix`"
