"""Training: the same bits after a kill, checkpoints, logs, commands, the demo's pieces."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from fastfuse import cli
from fastfuse.data import Scenes
from fastfuse.demo import run_demo
from fastfuse.training import Trainer, TrainingConfig, commands, evaluate, load_captioner, train
from fastfuse.training.checkpoint import latest_checkpoint
from fastfuse.training.config import autocast_dtype
from fastfuse.training.logs import read_log
from fastfuse.training.loop import steps_within
from fastfuse.training.optimizers import Float32Muon
from fastfuse.training.schedule import learning_rate

TINY = TrainingConfig(
    preset="tiny", steps=24, batch_size=8, captions_per_image=2, train_size=64, warmup_steps=4, checkpoint_every=3,
    evaluate_every=20, attention="eager", precision="float32",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums do not depend on how many threads there are, and tiny products are faster with one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run that nothing interrupted."""
    out = tmp_path_factory.mktemp("run")
    train(TINY, out, quiet=True)
    return out


def weights(out: Path) -> dict[str, torch.Tensor]:
    folder = latest_checkpoint(out)
    return {**load_file(folder / "model.safetensors"), **load_file(folder / "optimizer.safetensors")}


def assert_same_weights(a: Path, b: Path) -> None:
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
def test_muon_orthogonalises_in_float32(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape).requires_grad_()
    start, weight.grad = weight.detach().double(), torch.randn(shape)
    gradient = weight.grad.clone()
    Float32Muon([weight], lr=0.1, weight_decay=0.0).step()
    (group,) = torch.optim.Muon([weight]).param_groups
    x = gradient.double() / gradient.double().norm()  # Nesterov's step is a multiple of it
    a, b, c = group["ns_coefficients"]
    for _ in range(group["ns_steps"]):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    moved = (start - weight.double()) / (0.1 * max(1, shape[0] / shape[1]) ** 0.5)
    torch.testing.assert_close(moved, x, rtol=1e-4, atol=1e-5)  # bfloat16 would be off by 1e-2
    assert torch.equal(weight.grad, gradient)


def test_a_killed_run_ends_with_the_same_bits(run, tmp_path):
    out = tmp_path / "killed"
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path; from fastfuse.training import TrainingConfig, train\n"
        "train(TrainingConfig.load(Path(sys.argv[1])), Path(sys.argv[2]), quiet=True)"
    )
    settings = tmp_path / "training.json"
    TINY.save(settings)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code, str(settings), str(out)], env=environment)
    deadline = time.monotonic() + 120
    while len(read_log(out)) < 8 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < load_captioner(out).step < TINY.steps
    train(TINY, out, quiet=True)
    assert_same_weights(run, out)
    assert [entry["step"] for entry in read_log(out)] == list(range(1, TINY.steps + 1))


def test_what_a_kill_leaves_half_written_is_ignored(run, tmp_path):
    out = tmp_path / "torn"
    short = replace(TINY, steps=TINY.steps)
    trainer = Trainer(short)
    assert trainer.next_step == 0
    train(short, out, quiet=True)
    checkpoints = sorted((out / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["step-00000021", "step-00000024"]
    torn = out / "checkpoints" / ".writing-00000027"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    with (out / "log.jsonl").open("a") as log:
        log.write('{"step": 25, "capt')
    assert load_captioner(out).step == 24
    train(short, out, quiet=True)
    assert_same_weights(run, out)
    assert len(read_log(out)) == TINY.steps


def test_another_config_does_not_go_on_with_a_run(run):
    with pytest.raises(ValueError, match="learning_rate"):
        train(replace(TINY, learning_rate=1.0), run, quiet=True)


def test_a_checkpoint_gives_back_the_model(run):
    trained = load_captioner(run)
    assert trained.step == TINY.steps
    assert trained.training == TINY
    trainer = Trainer(TINY, resume=latest_checkpoint(run))
    batch = trainer.batches.batch(0)
    model = load_captioner(run, "eager").model
    assert torch.equal(trainer.model(batch.images, batch.tokens).total, model(batch.images, batch.tokens).total)
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        load_captioner(run / "tensorboard")


def test_it_learns(run):
    caption = [entry["caption"] for entry in read_log(run)]
    assert sum(caption[-4:]) < 0.97 * sum(caption[:4])


def test_logs_are_there(run):
    assert list((run / "tensorboard").glob("events*"))
    assert [entry["step"] for entry in read_log(run) if "exact" in entry] == [20]
    assert (run / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_schedule():
    rates = [learning_rate(step, peak=2.0, warmup_steps=10, steps=100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[9] == rates[10] == 2.0
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.01


def test_precision():
    cpu = torch.device("cpu")
    assert autocast_dtype("float32", cpu) is None
    assert autocast_dtype("bfloat16", cpu) == torch.bfloat16
    assert autocast_dtype("auto", torch.device("cuda")) == torch.bfloat16
    with pytest.raises(ValueError, match="precision"):
        replace(TINY, precision="int8")


def test_steps_within():
    assert 1 <= steps_within(TINY, 0.01, sample=3) < 1000


def test_evaluation(run):
    trained = load_captioner(run)
    heldout = Scenes("heldout", size=7)
    scores = evaluate(trained.model, trained.tokenizer, heldout, batch_size=4, beams=2)
    assert len(scores.captions) == len(scores.exact) == 7
    assert scores.grades["exact"] == sum(scores.exact) / 7
    assert {"colour", "shape", "texture"} <= scores.grades.keys()
    assert set(scores.recall) == {"i2t", "t2i"}


def test_commands(run, tmp_path):
    runner = CliRunner()
    out = tmp_path / "commanded"
    result = runner.invoke(
        commands.train,
        ["--data", "digits", "--out", str(out), "--steps", "2", "--preset", "tiny", "--batch-size", "4",
         "--train-size", "20", "--attention", "eager"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "exact" in result.output
    picture = tmp_path / "scene.png"
    Scenes("heldout").example(0).image.save(picture)
    maps = tmp_path / "maps"
    result = runner.invoke(
        commands.caption, [str(picture), "--model", str(run), "--heatmap", str(maps), "--beams", "2"]
    )
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"{picture}: ")
    assert (maps / "scene.png").is_file()
    result = runner.invoke(commands.evaluate, ["--model", str(run), "--size", "5", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["pictures"] == 5
    result = runner.invoke(commands.caption, [str(tmp_path / "none.png"), "--model", str(run)])
    assert result.exit_code == 1
    assert "does not exist" in result.output


def test_commands_are_there_and_say_what_they_lack(monkeypatch):
    runner = CliRunner()
    listed = runner.invoke(cli.main, ["--help"]).output
    assert all(name in listed for name in ("info", "train", "caption", "evaluate"))
    assert "--data" in runner.invoke(cli.main, ["train", "--help"]).output

    def missing(_):
        raise ModuleNotFoundError("No module named 'tokenizers'", name="tokenizers")

    monkeypatch.setattr(cli, "import_module", missing)
    assert runner.invoke(cli.main, ["--help"]).exit_code == 0
    result = runner.invoke(cli.main, ["train"])
    assert result.exit_code == 1
    assert "needs tokenizers: pip install 'fastfuse[captioner]'" in result.output


def test_a_folder_of_captioned_pictures(tmp_path):
    scenes, folder = Scenes("all", size=12), tmp_path / "images"
    folder.mkdir()
    for i in range(len(scenes)):
        scenes.example(i).image.save(folder / f"{i}.png")
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(len(scenes))]
    captions = [{"image_id": i, "caption": text} for i in range(len(scenes)) for text in scenes.captions(i)]
    annotations = tmp_path / "captions.json"
    annotations.write_text(json.dumps({"images": images, "annotations": captions}))
    out = tmp_path / "run"
    options = ["--steps", "2", "--preset", "tiny", "--batch-size", "4", "--captions-per-image", "3", "--augment"]
    result = CliRunner().invoke(commands.train, ["--data", f"coco:{annotations}:{folder}", "--out", str(out), *options])
    assert result.exit_code == 0, result.output
    assert load_captioner(out).tokenizer.encode(["purple hexagon"])[1] > 3  # bytes: nothing is unknown


def test_demo(tmp_path):
    config = replace(TINY, steps=3, checkpoint_every=3, attention="fused")
    report = run_demo(config, tmp_path / "demo", pictures=6)
    html = report.read_text()
    assert html.count("data:image/png;base64,") > 6
    assert "http://" not in html
    assert "https://" not in html
