"""What a training step and a beam search cost with fused operations and with plain PyTorch, on the same weights.

Times are medians of interleaved repetitions in one process. Peak memory is measured in a fresh process for each way:
``python -m fastfuse.training.measure RUN fused`` prints what a beam search, and then a training step, add to its peak.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from fastfuse.nn.core import Attention
from fastfuse.training.checkpoint import latest_checkpoint
from fastfuse.training.config import TrainingConfig
from fastfuse.training.decode import generate
from fastfuse.training.loop import Trainer

ATTENTIONS: tuple[Attention, ...] = ("eager", "fused")
WORKS = ("decode", "train")  # in the order of their need of memory
BEAMS = 4
PICTURES = 64  # of a beam search


class Cost(NamedTuple):
    """Of one way to compute."""

    seconds: float  # median
    added_mib: float  # to the peak of a process that has loaded the model


def measure(run: Path, repetitions: int = 5) -> dict[str, dict[str, Cost]]:
    """{"decode": {"eager": .., "fused": ..}, "train": ..} for the model of a run's last checkpoint."""
    trainer = _trainer(run)
    costs: dict[str, dict[str, Cost]] = {}
    peaks = {attention: _peaks_in_fresh_process(run, attention) for attention in ATTENTIONS}
    for work in WORKS:
        call = _work(trainer, work)
        times: dict[str, list[float]] = {attention: [] for attention in ATTENTIONS}
        for repetition in range(repetitions + 1):  # the first one warms up
            for attention in ATTENTIONS:
                trainer.model.attention = attention
                start = time.perf_counter()
                call()
                if repetition:
                    times[attention].append(time.perf_counter() - start)
        costs[work] = {a: Cost(median(times[a]), peaks[a][work]) for a in ATTENTIONS}
    return costs


def fastest_thread_count(config: TrainingConfig) -> int:
    """torch's present number of threads or 1, whichever does a step sooner right now.

    Threads wait for one another at the end of every operation: where other programs keep a core busy, one is faster.
    """
    before = torch.get_num_threads()
    trainer = Trainer(replace(config, steps=1))
    batch = trainer.batches.batch(0)
    times = {}
    for threads in {before, 1}:
        torch.set_num_threads(threads)
        trainer.losses(batch).total.backward()  # warms up
        start = time.perf_counter()
        trainer.losses(batch).total.backward()
        times[threads] = time.perf_counter() - start
    torch.set_num_threads(before)
    return min(times, key=lambda threads: times[threads])


def _trainer(run: Path) -> Trainer:
    folder = latest_checkpoint(run)
    if folder is None:
        raise FileNotFoundError(f"run: no complete checkpoint in {run}")
    return Trainer(TrainingConfig.load(folder / "training.json"), resume=folder)


def _work(trainer: Trainer, work: str) -> Callable[[], object]:
    """A call that does one training step (gradients, no update) or one beam search."""
    batch = trainer.batches.batch(0)
    if work == "decode":
        trainer.model.eval()
        pictures = batch.images[:PICTURES]

        def search() -> None:
            with trainer.autocast():
                generate(trainer.model, pictures, beams=BEAMS)

        return search
    trainer.model.train()

    def step() -> None:
        trainer.losses(batch).total.backward()
        trainer.model.zero_grad()

    return step


def _peaks_in_fresh_process(run: Path, attention: str) -> dict[str, float]:
    command = [sys.executable, "-m", "fastfuse.training.measure", str(run), attention]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return {work: float(peak) for work, peak in zip(WORKS, printed.split(), strict=True)}


def _peak_mib() -> float:
    """This process's own: on Linux getrusage also counts the parent's memory at the time of the fork."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _main(run: Path, attention: Attention) -> None:
    trainer = _trainer(run)
    trainer.model.attention = attention
    before = _peak_mib()
    for work in WORKS:
        _work(trainer, work)()
        print(_peak_mib() - before)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), "eager" if sys.argv[2] == "eager" else "fused")
