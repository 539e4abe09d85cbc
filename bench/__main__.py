"""`python -m bench`: run and keep; `python -m bench compare`: run and hold against what was committed last."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import pytest
from rich.console import Console
from rich.table import Table

from bench.results import FOLDER, Results, Row, refusals, save, table

ROOT = FOLDER.parents[1]
SLOWER = 1.25  # two runs of one build differ by less on a machine that others use


@click.group(invoke_without_command=True)
@click.option("-k", "keyword", default="", help="Run only the cases that match, as in pytest; nothing is kept.")
@click.pass_context
def main(context: click.Context, keyword: str) -> None:
    """Time every case against every peer; write bench/results/<device>/."""
    if context.invoked_subcommand:
        return
    results = measure(keyword)
    show(results)
    if not keyword:
        save(results)
        click.echo(f"written to {results.path.parent.relative_to(ROOT)}")


@main.command()
def compare() -> None:
    """Time every case again and flag each whose ratio to the best peer fell since the last commit of the results."""
    results = measure("")
    show(results)
    path = results.path.relative_to(ROOT)
    shown = subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True, text=True, check=False)
    if shown.returncode:
        sys.exit(f"no committed {path} to compare with")
    before = {row.key: row.ratio for row in Results.from_json(shown.stdout).rows}
    slower = [(row, before[row.key]) for row in results.rows if row.ratio * SLOWER < before.get(row.key, 0)]
    for row, ratio in slower:
        click.echo(f"slower: {row.key}: {ratio:.2f}x -> {row.ratio:.2f}x")
    click.echo(f"{len(results.rows)} cases, {len(slower)} slower by more than {SLOWER - 1:.0%}")
    sys.exit(bool(slower))


def measure(keyword: str) -> Results:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "benchmark.json")
        options = [
            "-q",
            "-k",
            keyword,
            "-p",
            "no:xdist",
            "-p",
            "no:warnings",
            "--benchmark-quiet",
            f"--benchmark-json={path}",
        ]
        code = pytest.main([str(FOLDER.parent), *options])
        if code:
            sys.exit(int(code))
        runs = json.loads(path.read_text())["benchmarks"]
    return Results.of([Row(**run["extra_info"]) for run in runs])


def show(results: Results) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    for name, rows in results.groups().items():
        header, *body = table(rows)
        shown = Table(header[0], title=name, title_justify="left")
        for column in header[1:]:
            shown.add_column(column, justify="right")
        for line in body:
            shown.add_row(*line)
        console.print(shown, *refusals(rows), sep="\n")


if __name__ == "__main__":
    main()
