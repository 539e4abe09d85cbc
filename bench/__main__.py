"""`python -m bench`: run and keep; `python -m bench compare`: run and hold against what was committed last."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import torch
from rich.console import Console
from rich.table import Table

from bench import machine
from bench.ahead import write_leads
from bench.results import FOLDER, Results, Row, refusals, save, table

ROOT = FOLDER.parents[1]
SLOWER = 1.25  # two runs of one build differ by less on a machine that others use


@click.group(invoke_without_command=True)
@click.option("-k", "keyword", default="", help="Run only the cases that match, as in pytest; nothing is kept.")
@click.option("--device", type=click.Choice(machine.DEVICES), default="cpu", help="What to time on.")
@click.option("--seconds", default=float("inf"), help="Begin no case after that many; what was timed is kept.")
@click.pass_context
def main(context: click.Context, keyword: str, device: str, seconds: float) -> None:
    """Time every case against every peer; write bench/results/<device>/."""
    machine.use(device)
    if context.invoked_subcommand:
        return
    results, code = measure(keyword, seconds)
    if device == "cuda" and not keyword:
        results = write_leads(results, torch.cuda.get_device_name())
    show(results)
    if not keyword and code and device == "cpu":
        click.echo(f"{len(results.rows)} cases, not kept: others failed")
    elif not keyword and device != "interpreter":  # whose times mean nothing
        save(results)
        click.echo(f"{len(results.rows)} cases, written to {results.path.relative_to(ROOT)}")
    else:
        click.echo(f"{len(results.rows)} cases, not kept")
    sys.exit(code)


@main.command()
def compare() -> None:
    """Time every case again and flag each whose ratio to the best peer fell since the last commit of the results."""
    results, code = measure("")
    show(results)
    if code:
        sys.exit(code)
    committed = last_committed(results)
    if committed is None:
        sys.exit(f"no committed results in {results.path.parent.relative_to(ROOT)} to compare with")
    before = {row.key: row.ratio for row in committed.rows}
    slower = [(row, before[row.key]) for row in results.rows if row.ratio * SLOWER < before.get(row.key, 0)]
    for row, ratio in slower:
        click.echo(f"slower: {row.key}: {ratio:.2f}x -> {row.ratio:.2f}x")
    click.echo(f"{len(results.rows)} cases, {len(slower)} slower by more than {SLOWER - 1:.0%}")
    sys.exit(bool(slower))


def last_committed(results: Results) -> Results | None:
    """The last committed results of the same device."""
    folder = results.path.parent.relative_to(ROOT)
    listed = _git("ls-tree", "--name-only", "HEAD", f"{folder}/").split()
    paths = sorted(path for path in listed if path.endswith(".json"))
    return Results.from_json(_git("show", f"HEAD:{paths[-1]}")) if paths else None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def measure(keyword: str, seconds: float = float("inf")) -> tuple[Results, int]:
    """The cases that were timed, and pytest's exit code: 0 also where the time was over before the rest."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "benchmark.json")
        options = ["-q", "-k", keyword, "-p", "no:xdist", "-p", "no:warnings", "--benchmark-quiet"]
        boxed = TimeBox(time.monotonic() + seconds)
        code = int(pytest.main([str(FOLDER.parent), *options, f"--benchmark-json={path}"], plugins=[boxed]))
        if not path.exists() or not path.stat().st_size:
            sys.exit(code)
        runs = json.loads(path.read_text())["benchmarks"]
    rows = [Row(**run["extra_info"]) for run in runs if run["extra_info"]]
    return Results.of(rows), 0 if boxed.is_over and code == pytest.ExitCode.INTERRUPTED else code


@dataclass
class TimeBox:
    """A pytest plugin that begins no case after a time."""

    until: float
    is_over: bool = False

    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        self.is_over = time.monotonic() > self.until
        if not self.is_over:
            return None  # pytest runs it
        item.session.shouldstop = f"the time is over before {item.name}"
        return True


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
