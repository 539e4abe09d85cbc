"""The command line: `fastfuse info | bench`."""

from __future__ import annotations

import click

import fastfuse


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(fastfuse.__version__, prog_name="fastfuse")
def main() -> None:
    """Fused cross-modal attention and contrastive similarity for vision-language models."""


@main.command()
@click.option("--matrix", is_flag=True, help="Print the support matrix as Markdown instead.")
def info(matrix: bool) -> None:
    """Versions, what is built, CPU and GPUs found, and the backend that each op would take."""
    from fastfuse.info import report, support_matrix

    click.echo(support_matrix() if matrix else report())
