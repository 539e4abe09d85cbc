"""A run's numbers: JSON lines, TensorBoard, and a plot of both losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class RunLog:
    """Writes ``log.jsonl`` and ``tensorboard/`` in a run's folder.

    Args:
        out: the run's folder.
        step: the step that the run goes on from; what was logged after it belongs to a killed run and is dropped.
    """

    def __init__(self, out: Path, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = out / "log.jsonl"
        kept = [entry for entry in read_log(out) if entry["step"] <= step]
        self.path.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        self._lines = self.path.open("a", buffering=1)
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, **values: float) -> None:
        """Values at ``step``, counted from 1."""
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush both."""
        self._lines.close()
        self._board.close()


def read_log(out: Path) -> list[dict[str, Any]]:
    """The entries of a run's ``log.jsonl``; a last line cut short by a kill is left out."""
    path = out / "log.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def plot_losses(out: Path) -> Path:
    """Draw ``losses.png`` from ``log.jsonl``."""
    from matplotlib.figure import Figure

    entries = [entry for entry in read_log(out) if "caption" in entry]
    steps = [entry["step"] for entry in entries]
    figure = Figure(figsize=(7, 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("caption", "contrastive"), strict=True):
        axes.plot(steps, [entry[name] for entry in entries], color="#3366aa", linewidth=1.2)
        axes.set(title=f"{name} loss", xlabel="step", ylabel="nats")
        axes.grid(alpha=0.3)
    path = out / "losses.png"
    figure.savefig(path, dpi=120)
    return path
