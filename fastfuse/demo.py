"""`make demo`: train a captioner on rendered scenes, caption pictures that it never saw, write a report.

No training picture contains a colour and shape pair of the held-out ones: what is said rightly there was put together
from parts that were learnt apart.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click
import torch

from fastfuse.data import CaptionTokenizer, Preprocess, Scenes
from fastfuse.models import Captioner
from fastfuse.training import Evaluation, TrainingConfig, evaluate, train, word_maps
from fastfuse.training.config import autocast_dtype
from fastfuse.training.measure import BEAMS, PICTURES, Cost, fastest_thread_count, measure
from fastfuse.training.report import Shown, write_report

RECIPE = TrainingConfig(data="scenes", preset="demo", steps=1000, checkpoint_every=200)
WITH_MAPS = 12  # pictures shown large in the report
_WORKS = {"train": "training step", "decode": f"captions of {PICTURES} pictures, {BEAMS} beams"}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True)
@click.option("--steps", default=RECIPE.steps, show_default=True)
@click.option("--seed", default=RECIPE.seed, show_default=True)
@click.option("--pictures", default=200, show_default=True, help="Held-out pictures to caption.")
def main(out: Path, steps: int, seed: int, pictures: int) -> None:
    """Train on scenes, caption held-out pictures, compare fused with eager, write OUT/report.html."""
    run_demo(replace(RECIPE, steps=steps, seed=seed), out, pictures)


def run_demo(config: TrainingConfig, out: Path, pictures: int) -> Path:
    """Everything that `make demo` does, into an empty folder ``out``; returns the report's path."""
    start = time.perf_counter()
    shutil.rmtree(out, ignore_errors=True)
    threads = fastest_thread_count(config)
    click.echo(f"{threads} thread{'s'[: threads > 1]}, fastfuse {config.attention}")
    torch.set_num_threads(threads)
    model, tokenizer, _, _ = train(config, out)
    minutes = (time.perf_counter() - start) / 60
    click.echo(f"{config.steps} steps of {config.batch_size} pictures in {minutes:.1f} minutes")

    heldout = Scenes("heldout", seed=1, size=pictures)
    scores = evaluate(model, tokenizer, heldout, dtype=autocast_dtype(config.precision, torch.device("cpu")))
    grades = {name: f"{value:.1%}" for name, value in scores.grades.items()}
    recall = {f"Recall@1 {way}": f"{at[1]:.1%}" for way, at in scores.recall.items()}
    click.echo(f"\n{pictures} held-out pictures, each with a colour, shape and texture never seen together")
    for name, value in {**grades, **recall}.items():
        click.echo(f"  {name:<14}{value:>8}")

    table = _cost_table(measure(out))
    click.echo()
    for row in table:
        click.echo(f"  {row[0]:<38}" + "".join(f"{cell:>14}" for cell in row[1:]))

    report = out / "report.html"
    write_report(
        report,
        title="A captioner trained with fastfuse",
        lead=f"{config.steps} steps of {config.batch_size} pictures in {minutes:.1f} minutes on this machine's CPU; "
        f"{pictures} held-out pictures, every one with a colour and shape that training never showed together.",
        numbers={"exact captions": grades.pop("exact"), **grades, **recall},
        table=table,
        table_note="The same weights with fused operations and with plain PyTorch, medians of interleaved repetitions; "
        "memory is what each adds to the peak of a fresh process that has loaded the model.",
        plot=out / "losses.png",
        plot_note=f"In the first {config.hide_words:.0%} of the steps the decoder reads nothing, must find all words "
        "in the picture; where it begins to read, the caption loss starts anew.",
        pictures=_pictures(model, tokenizer, heldout, scores),
    )
    click.echo(f"\nwrote {report} after {(time.perf_counter() - start) / 60:.1f} minutes")
    return report


def _cost_table(costs: Mapping[str, Mapping[str, Cost]]) -> list[list[str]]:
    rows = [["", "eager", "fused"]]
    for work, name in _WORKS.items():
        eager, fused = costs[work]["eager"], costs[work]["fused"]
        rows.append([name, f"{eager.seconds * 1e3:.0f} ms", f"{fused.seconds * 1e3:.0f} ms"])
        rows.append(["  memory at its peak", f"{eager.added_mib:.0f} MiB", f"{fused.added_mib:.0f} MiB"])
    return rows


def _pictures(model: Captioner, tokenizer: CaptionTokenizer, heldout: Scenes, scores: Evaluation) -> list[Shown]:
    """Every held-out picture with its caption, the first ones with maps."""
    examples = [heldout.example(i) for i in range(len(heldout))]
    preprocess = Preprocess(model.config.image_size)
    pixels = preprocess.batch([preprocess.fit(example.image) for example in examples[:WITH_MAPS]])
    tokens, lengths = tokenizer.encode(scores.captions[:WITH_MAPS])
    maps = word_maps(model, pixels, tokens)
    shown = [
        Shown(example.image, caption, right, example.captions[0])
        for example, caption, right in zip(examples, scores.captions, scores.exact, strict=True)
    ]
    for i in range(len(tokens)):
        words = tokenizer.words(tokens[i, : lengths[i]])
        shown[i] = replace(shown[i], words=words, maps=maps[i, : lengths[i]])
    return shown


if __name__ == "__main__":
    main()
