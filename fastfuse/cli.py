"""The command line: `fastfuse info | train | caption | evaluate | bench`."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click

import fastfuse

_ELSEWHERE = dict.fromkeys(("train", "caption", "evaluate"), "fastfuse.training.commands")


class _Commands(click.Group):
    """Imports what a command needs when it is asked for: `info` runs where the training libraries are missing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        try:
            command: click.Command = getattr(import_module(_ELSEWHERE[cmd_name]), cmd_name)
        except ModuleNotFoundError as error:
            missing = f"needs {error.name}: pip install 'fastfuse[captioner]'"
            return click.Command(cmd_name, callback=lambda: _fail(missing), short_help=missing, add_help_option=False)
        return command


def _fail(message: str) -> None:
    raise click.ClickException(message)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(fastfuse.__version__, prog_name="fastfuse")
def main() -> None:
    """Fused cross-modal attention and contrastive similarity for vision-language models."""


@main.command()
@click.option("--matrix", is_flag=True, help="Print the support matrix as Markdown instead.")
def info(matrix: bool) -> None:
    """Versions, what is built, CPU and GPUs found, and the backend that each op would take."""
    from fastfuse.info import report, support_matrix

    click.echo(support_matrix() if matrix else report())


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1)
def bench(arguments: tuple[str, ...]) -> None:
    """Time every case against every peer (in a checkout; the arguments of `python -m bench`)."""
    root = Path(fastfuse.__file__).parents[1]
    if not (root / "bench").is_dir():
        _fail("the benchmarks are not installed with the package: run this in a checkout")
    sys.exit(subprocess.run([sys.executable, "-m", "bench", *arguments], cwd=root, check=False).returncode)
