"""What a benchmark run found, and how it is kept: JSON, a Markdown table, a plot."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import geometric_mean, median

from bench import machine

FOLDER = Path(__file__).parent / "results"
DTYPES = ("float32", "bfloat16", "float16")
OURS = "fastfuse"  # how the names of our backends begin


@dataclass(frozen=True)
class Row:
    """One case: seconds are medians of rounds in which all contenders took turns."""

    group: str
    label: str
    dtype: str
    seconds: dict[str, float]  # by contender, fastfuse's chosen backend first
    peak_mib: dict[str, float | None]
    flops_ceiling: float  # operations a second of a big product in this dtype, in the same rounds
    bytes_ceiling: float  # bytes a second of a big copy, in the same rounds
    floor_seconds: float  # the least time that these allow
    refused: dict[str, str]  # contenders that were not timed, with the reason

    @property
    def key(self) -> str:
        return f"{self.group} | {self.label} | {self.dtype}"

    @property
    def ours(self) -> str:
        return next(iter(self.seconds))

    @property
    def best_peer(self) -> str:
        peers = [name for name in self.seconds if not name.startswith(OURS)]
        return min(peers, key=lambda name: self.seconds[name])

    @property
    def ratio(self) -> float:
        """The best peer's time over ours: above 1 we are faster."""
        return self.seconds[self.best_peer] / self.seconds[self.ours]

    @property
    def ceiling_share(self) -> float:
        """The least time that the machine's ceilings allow over our time."""
        return self.floor_seconds / self.seconds[self.ours]


@dataclass(frozen=True)
class Results:
    """All rows of one run and what they ran on."""

    device: str
    versions: dict[str, str]
    date: str
    rows: list[Row]

    @classmethod
    def of(cls, rows: list[Row]) -> Results:
        return cls(
            machine.slug(),
            machine.versions(),
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
        """Of a GPU there is a file for each day, for one is seldom at hand to run it again."""
        name = self.date if machine.device() == "cuda" else "results"
        return FOLDER / self.device / f"{name}.json"

    def groups(self) -> dict[str, list[Row]]:
        """Rows by group and dtype, in the order of the run."""
        by_name: dict[str, list[Row]] = {}
        for row in self.rows:
            by_name.setdefault(f"{row.group} {row.dtype}", []).append(row)
        return by_name


def save(results: Results) -> None:
    """Writes the results, README.md and speedup.png of this device."""
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
        f"`make bench` on {results.date} with {versions}. Ceilings, medians: {_ceilings(results)}.",
        "",
        "Milliseconds are medians of rounds in which all contenders took turns, after each result was checked against "
        "float64. Ratio: the best peer's time over ours, above 1 we are faster. Ceiling: the least time that a big "
        "product and a big copy in the same rounds allow, over ours. MiB: what the process grows by during the call, "
        "ours and the best peer's.",
        "",
        "![speed-up](speedup.png)",
        "",
        "| | ratio, geometric mean | least | greatest |",
        "|---|---:|---:|---:|",
        *(_summary(name, [row.ratio for row in rows]) for name, rows in results.groups().items()),
    ]
    for name, rows in results.groups().items():
        header, *body = table(rows)
        lines += ["", f"## {name}", ""]
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


def _summary(name: str, ratios: list[float]) -> str:
    return f"| {name} | {geometric_mean(ratios):.2f} | {min(ratios):.2f} | {max(ratios):.2f} |"


def _ceilings(results: Results) -> str:
    products = {dtype: [row.flops_ceiling for row in results.rows if row.dtype == dtype] for dtype in DTYPES}
    rates = [f"{dtype} products {median(rates) / 1e9:.0f} GFLOP/s" for dtype, rates in products.items() if rates]
    return ", ".join([*rates, f"copies {median(row.bytes_ceiling for row in results.rows) / 1e9:.0f} GB/s"])


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
    figure.savefig(path, dpi=75)
