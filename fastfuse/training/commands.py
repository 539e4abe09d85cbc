"""`fastfuse train`, `fastfuse caption` and `fastfuse evaluate`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click
import torch

from fastfuse.data import Preprocess, Split, load_image, open_dataset
from fastfuse.models import PRESETS
from fastfuse.nn.core import Attention
from fastfuse.training.checkpoint import latest_checkpoint, load_captioner
from fastfuse.training.config import PRECISIONS, TrainingConfig, autocast_dtype
from fastfuse.training.decode import generate, word_maps
from fastfuse.training.evaluate import evaluate as run_evaluation
from fastfuse.training.evaluate import summary
from fastfuse.training.heatmap import draw_word_maps
from fastfuse.training.loop import steps_within
from fastfuse.training.loop import train as run_training

DEFAULTS = TrainingConfig()
MODEL = click.option(
    "--model", "run", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of a training run."
)
ATTENTION = click.option(
    "--attention", type=click.Choice(["fused", "eager"]), default="fused", show_default=True,
    help="Fused operations, or the same formulas in plain PyTorch.",
)  # fmt: skip
DEVICE = click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
BEAMS = click.option("--beams", default=1, show_default=True, help="Hypotheses of the search; 1 is greedy.")


@click.command()
@click.option("--data", default="scenes", show_default=True, help="scenes, digits, or coco:captions.json:images/.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the run.")
@click.option("--steps", default=DEFAULTS.steps, show_default=True)
@click.option("--minutes", type=float, help="As many steps as fit, instead of --steps.")
@click.option("--preset", type=click.Choice(list(PRESETS)), default=DEFAULTS.preset, show_default=True)
@click.option("--batch-size", default=DEFAULTS.batch_size, show_default=True, help="Pictures a step.")
@click.option("--captions-per-image", default=DEFAULTS.captions_per_image, show_default=True)
@click.option(
    "--paraphrases", default=DEFAULTS.paraphrases, show_default=True,
    help="Chance that a caption after the first is another than the canonical one.",
)  # fmt: skip
@click.option(
    "--hide-words", default=DEFAULTS.hide_words, show_default=True,
    help="Share of the steps, from the first on, in which the decoder must look instead of read.",
)  # fmt: skip
@click.option("--learning-rate", default=DEFAULTS.learning_rate, show_default=True)
@click.option("--warmup-steps", default=DEFAULTS.warmup_steps, show_default=True)
@click.option("--augment", is_flag=True, help="Vary pictures where their captions stay true.")
@click.option("--train-size", type=int, help="Pictures an epoch.")
@click.option("--seed", default=DEFAULTS.seed, show_default=True)
@click.option("--precision", type=click.Choice(PRECISIONS), default=DEFAULTS.precision, show_default=True)
@click.option("--checkpoint-every", default=DEFAULTS.checkpoint_every, show_default=True, help="Steps.")
@click.option("--evaluate-every", default=DEFAULTS.evaluate_every, show_default=True, help="Steps; 0: never.")
@ATTENTION
@DEVICE
def train(out: Path, minutes: float | None, device: str, **settings: object) -> None:
    """Train a captioner. Started again on the same folder, it goes on where it was, to the same weights."""
    config = TrainingConfig(**settings)  # type: ignore[arg-type]
    found = latest_checkpoint(out)
    if minutes is not None:  # how many steps that is was settled when the run began
        steps = TrainingConfig.load(found / "training.json").steps if found else steps_within(config, minutes, device)
        config = replace(config, steps=steps)
        click.echo(f"{steps} steps")
    try:
        trained = run_training(config, out, device=device)
    except (ValueError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    try:
        heldout = open_dataset(config.data, "heldout", config.seed, 200)
    except ValueError as error:  # a small folder of pictures has none
        click.echo(f"trained, but not graded: {error}")
        return
    dtype = autocast_dtype(config.precision, torch.device(device))
    click.echo(summary(run_evaluation(trained.model, trained.tokenizer, heldout, dtype=dtype)))


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@MODEL
@BEAMS
@click.option("--heatmap", type=click.Path(path_type=Path), help="Folder for pictures of where each word looked.")
@ATTENTION
@DEVICE
def caption(
    images: tuple[Path, ...], run: Path, beams: int, heatmap: Path | None, attention: Attention, device: str
) -> None:
    """Caption picture files."""
    try:
        model, tokenizer, _, _ = load_captioner(run, attention, device)
        pictures = [load_image(path) for path in images]
    except (ValueError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    preprocess = Preprocess(model.config.image_size)
    fitted = [preprocess.fit(picture) for picture in pictures]
    pixels = preprocess.batch(fitted).to(device)
    generated = generate(model, pixels, beams=beams)
    for path, said in zip(images, tokenizer.decode_batch(generated.tokens), strict=True):
        click.echo(f"{path}: {said}")
    if heatmap is not None:
        heatmap.mkdir(parents=True, exist_ok=True)
        maps = word_maps(model, pixels, generated.tokens).cpu()
        for path, picture, row, where in zip(images, fitted, generated.tokens, maps, strict=True):
            drawn = heatmap / f"{path.stem}.png"
            draw_word_maps(picture, tokenizer.words(row), where).save(drawn)
            click.echo(f"wrote {drawn}")


@click.command()
@MODEL
@click.option("--data", help="As for train; by default what the model was trained on.")
@click.option("--split", type=click.Choice(["heldout", "train", "all"]), default="heldout", show_default=True)
@click.option("--size", default=1000, show_default=True, help="Pictures.")
@click.option("--seed", default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@BEAMS
@ATTENTION
@DEVICE
def evaluate(
    run: Path,
    data: str | None,
    split: Split,
    size: int,
    seed: int,
    as_json: bool,
    beams: int,
    attention: Attention,
    device: str,
) -> None:
    """Grade captions and retrieval on a dataset."""
    try:
        model, tokenizer, training, _ = load_captioner(run, attention, device)
        dataset = open_dataset(data or training.data, split, seed, size)
    except (ValueError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    dtype = autocast_dtype(training.precision, torch.device(device))
    scores = run_evaluation(model, tokenizer, dataset, beams=beams, dtype=dtype)
    if as_json:
        click.echo(json.dumps({"pictures": len(dataset), **scores.grades, "recall": scores.recall}))
    else:
        click.echo(summary(scores))
