"""What a benchmark run found, and how it is kept: JSON, a Markdown table, a plot."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import geometric_mean

import torch

import fastfuse
from bench.machine import bytes_ceiling, device_name, flops_ceiling

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One case: seconds are medians of rounds in which all contenders took turns."""

    group: str
    label: str
    dtype: str
    seconds: dict[str, float]  # by contender, fastfuse's chosen backend first
    peak_mib: dict[str, float | None]
    ceiling_share: float  # the machine's floor time over our time
    refused: dict[str, str]  # contenders that were not timed, with the reason

    @property
    def key(self) -> str:
        return f"{self.group} | {self.label} | {self.dtype}"

    @property
    def ours(self) -> str:
        return next(iter(self.seconds))

    @property
    def best_peer(self) -> str:
        peers = [name for name in self.seconds if not name.startswith("fastfuse")]
        return min(peers, key=lambda name: self.seconds[name])

    @property
    def ratio(self) -> float:
        """The best peer's time over ours: above 1 we are faster."""
        return self.seconds[self.best_peer] / self.seconds[self.ours]


@dataclass(frozen=True)
class Results:
    """All rows of one run and what they ran on."""

    device: str
    versions: dict[str, str]
    ceilings: dict[str, float]  # operations a second by dtype, and "copy" in bytes a second
    date: str
    rows: list[Row]

    @classmethod
    def of(cls, rows: list[Row]) -> Results:
        dtypes = sorted({row.dtype for row in rows})
        return cls(
            device_name(),
            {"fastfuse": fastfuse.__version__, "torch": torch.__version__, "python": platform.python_version()},
            {dtype: flops_ceiling(getattr(torch, dtype)) for dtype in dtypes} | {"copy": bytes_ceiling()},
            date.today().isoformat(),
            rows,
        )

    @classmethod
    def from_json(cls, text: str) -> Results:
        fields = json.loads(text)
        return cls(**fields | {"rows": [Row(**row) for row in fields["rows"]]})

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @property
    def path(self) -> Path:
        return FOLDER / self.device / "results.json"

    def groups(self) -> dict[str, list[Row]]:
        """Rows by group and dtype, in the order of the run."""
        by_name: dict[str, list[Row]] = {}
        for row in self.rows:
            by_name.setdefault(f"{row.group} {row.dtype}", []).append(row)
        return by_name


def save(results: Results) -> None:
    """Writes results.json, README.md and speedup.png of this device."""
    results.path.parent.mkdir(parents=True, exist_ok=True)
    results.path.write_text(results.to_json())
    results.path.with_name("README.md").write_text(markdown(results))
    plot(results, results.path.with_name("speedup.png"))


def markdown(results: Results) -> str:
    """The report of one device."""
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    lines = [
        f"# {results.device}",
        "",
        f"`make bench` on {results.date} with {versions}. Ceilings measured in the same run: {_ceilings(results)}.",
        "",
        "Milliseconds are medians of rounds in which all contenders took turns, after each result was checked against "
        "float64. Ratio: the best peer's time over ours, above 1 we are faster. Ceiling: the least time that the "
        "ceilings allow over ours. MiB: what the process grows by during the call, ours and the best peer's.",
        "",
        "![speed-up](speedup.png)",
    ]
    for name, rows in results.groups().items():
        header, *body = table(rows)
        lines += ["", f"## {name}: {geometric_mean([row.ratio for row in rows]):.2f}x", ""]
        lines += [f"| {' | '.join(line)} |" for line in [header, ["---", *["---:"] * (len(header) - 1)], *body]]
        lines += ["", *refusals(rows)] if refusals(rows) else []
    return "\n".join(lines) + "\n"


def table(rows: list[Row]) -> list[list[str]]:
    """The header and a line for each row: milliseconds of each contender, ratio, share of the ceiling, memory."""
    names = list(dict.fromkeys(name for row in rows for name in [*row.seconds, *row.refused]))
    header = ["case", *names, "ratio", "ceiling", "MiB", "peer's"]
    return [header, *([row.label, *_times(row, names), *_verdict(row)] for row in rows)]


def refusals(rows: list[Row]) -> list[str]:
    """Why contenders were not timed, each reason once."""
    return list(dict.fromkeys(f"{name}: {reason}" for row in rows for name, reason in row.refused.items()))


def _times(row: Row, names: list[str]) -> list[str]:
    return [f"{row.seconds[name] * 1e3:.2f}" if name in row.seconds else "" for name in names]


def _verdict(row: Row) -> list[str]:
    memory = [_mib(row.peak_mib[name]) for name in (row.ours, row.best_peer)]
    return [f"{row.ratio:.2f}", f"{row.ceiling_share:.0%}", *memory]


def _mib(size: float | None) -> str:
    return "?" if size is None else f"{size:.0f}"


def _ceilings(results: Results) -> str:
    rates = {name: f"{rate / 1e9:.0f}" for name, rate in results.ceilings.items()}
    return ", ".join(
        f"{rate} GB/s copy" if name == "copy" else f"{rate} GFLOP/s {name}" for name, rate in rates.items()
    )


def plot(results: Results, path: Path) -> None:
    """Bars of the ratio to the best peer, a panel for each group."""
    from matplotlib.figure import Figure

    groups = results.groups()
    heights = [len(rows) + 1 for rows in groups.values()]
    figure = Figure(figsize=(9, 1 + 0.35 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axes, (name, rows) in zip(panels, groups.items(), strict=True):
        ratios = [row.ratio for row in rows]
        colours = ["tab:green" if ratio >= 1 else "tab:red" for ratio in ratios]
        bars = axes.barh([row.label for row in rows], ratios, color=colours)
        axes.bar_label(bars, [f"{r:.2f}x" for r in ratios], padding=3)
        axes.axvline(1, color="black", linewidth=1)
        axes.set_title(name, loc="left", fontsize=10)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("best peer's time / ours")
    figure.suptitle(results.device)
    figure.savefig(path, dpi=110)
