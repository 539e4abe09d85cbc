"""`fastfuse info`, and the README's support matrix, which is its output."""

from __future__ import annotations

from pathlib import Path

import torch
from click.testing import CliRunner

from fastfuse.backends import OPS, backends
from fastfuse.cli import main

README = Path(__file__).parents[1] / "README.md"


def run_info(*options: str) -> str:
    result = CliRunner().invoke(main, ["info", *options])
    assert result.exit_code == 0, result.output
    return result.output


def test_info_names_everything() -> None:
    text = run_info()
    for name in [torch.__version__, *OPS, *(status.name for status in backends())]:
        assert name in text
