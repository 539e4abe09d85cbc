"""Tokenizers, and batches that are a function of the step."""

import subprocess
import sys

import pytest
import torch

from fastfuse.data import (
    CaptionTokenizer,
    Preprocess,
    Scenes,
    TrainingBatches,
    evaluation_batches,
    open_dataset,
    training_captions,
)


@pytest.fixture(scope="module")
def tokenizer():
    return CaptionTokenizer.train(training_captions(Scenes(), limit=300))


def batches(tokenizer, **options):
    return TrainingBatches(Scenes(size=50), tokenizer, Preprocess(64), 8, **options)


@pytest.mark.parametrize("name", ["scenes", "digits"])
def test_a_vocabulary_of_training_captions_covers_heldout_ones(name):
    tokenizer = CaptionTokenizer.train(training_captions(open_dataset(name), limit=2000))
    heldout = open_dataset(name, "heldout")
    for i in range(200):
        tokens, lengths = tokenizer.encode(heldout.captions(i))
        assert not (tokens == tokenizer.unk_id).any()
        assert tokenizer.decode_batch(tokens) == list(heldout.captions(i))
        assert lengths.tolist() == [len(caption.split()) + 2 for caption in heldout.captions(i)]


def test_rows_are_framed_and_padded(tokenizer):
    tokens, lengths = tokenizer.encode(["a red star", "red", ""])
    assert tokens.dtype == lengths.dtype == torch.int64
    assert tokens.shape == (3, 5)
    assert lengths.tolist() == [5, 3, 2]
    assert tokens[:, 0].tolist() == [tokenizer.bos_id] * 3
    for row, length in zip(tokens, lengths, strict=True):
        assert row[length - 1] == tokenizer.eos_id
        assert (row[length:] == tokenizer.pad_id).all()
    assert tokenizer.words(tokens[1]) == ["<bos>", "red", "<eos>", "<pad>", "<pad>"]


def test_encoding_corner_cases(tokenizer):
    tokens, lengths = tokenizer.encode(["A RED giraffe"])
    assert tokenizer.words(tokens[0]) == ["<bos>", "a", "red", "<unk>", "<eos>"]
    assert tokenizer.decode(tokens[0]) == "a red"
    tokens, lengths = tokenizer.encode(["a red star above a blue star"], max_length=4)
    assert tokenizer.words(tokens[0]) == ["<bos>", "a", "red", "<eos>"]
    assert lengths.tolist() == [4]
    assert tokenizer.encode([])[0].shape == (0, 0)
    assert tokenizer.decode([]) == ""
    with pytest.raises(ValueError, match="max_length"):
        tokenizer.encode(["a"], max_length=1)


def test_byte_pairs_bring_back_any_text():
    captions = ["a plate of food, on a table.", "two dogs' noses", "naïve café ☕"]
    tokenizer = CaptionTokenizer.train(captions * 3, kind="bpe", vocab_size=400)
    for text in (*captions, "zebras & 3 µm"):
        tokens, _ = tokenizer.encode([text])
        assert not (tokens == tokenizer.unk_id).any()
        assert tokenizer.decode(tokens[0]) == text.replace("µ", "μ")  # NFKC: the micro sign is the letter mu
    assert len(tokenizer) <= 400


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = CaptionTokenizer.load(tmp_path / "tokenizer.json")
    captions = Scenes().captions(0)
    assert torch.equal(loaded.encode(captions)[0], tokenizer.encode(captions)[0])
    assert len(loaded) == len(tokenizer)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="not a tokenizer"):
        CaptionTokenizer.load(tmp_path / "tokenizer.json")
    with pytest.raises(FileNotFoundError):
        CaptionTokenizer.load(tmp_path / "none.json")
    with pytest.raises(ValueError, match="kind"):
        CaptionTokenizer.train([], kind="char")


def test_training_is_the_same_every_time():
    trained = [CaptionTokenizer.train(training_captions(Scenes(), limit=100)) for _ in range(2)]
    assert torch.equal(*(t.encode(Scenes().captions(0))[0] for t in trained))


def test_a_batch_depends_on_its_step_alone(tokenizer):
    forward, jumped = batches(tokenizer, augment=True), batches(tokenizer, augment=True)
    walked = [forward.batch(step) for step in range(15)][13]
    straight = jumped.batch(13)
    assert walked.keys == straight.keys
    for name in ("images", "tokens", "lengths", "ids"):
        assert torch.equal(getattr(walked, name), getattr(straight, name))
    assert batches(tokenizer, seed=1).batch(13).keys != straight.keys


def test_an_epoch_shows_each_picture_once(tokenizer):
    loader = batches(tokenizer)
    assert loader.steps_per_epoch == 6
    epochs = [[key for step in range(6) for key in loader.batch(6 * epoch + step).keys] for epoch in range(2)]
    assert len(set(epochs[0])) == len(set(epochs[1])) == 48
    assert not set(epochs[0]) & set(epochs[1])


def test_shapes_and_types(tokenizer):
    batch = batches(tokenizer).batch(0)
    assert batch.images.shape == (8, 3, 64, 64)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous()
    assert batch.tokens.shape == (8, int(batch.lengths.max()))
    assert batch.ids.shape == (8,)
    assert batch.to("meta").tokens.is_meta


def test_ids_are_equal_where_canonical_captions_are():
    digits = open_dataset("digits", size=300)
    tokenizer = CaptionTokenizer.train(training_captions(digits))
    ids, captions = [], []
    for batch, examples in evaluation_batches(digits, tokenizer, Preprocess(64), 128):
        assert len(examples) == len(batch.ids)
        ids += batch.ids.tolist()
        captions += [example.captions[0] for example in examples]
    assert len(ids) == 300
    assert len(set(ids)) == len(set(captions)) < 300
    assert len(set(zip(ids, captions, strict=True))) == len(set(ids))


def test_another_process_makes_the_same_batch(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t.json")
    program = (
        "from fastfuse.data import *\n"
        f"tokenizer = CaptionTokenizer.load({str(tmp_path / 't.json')!r})\n"
        "x = TrainingBatches(Scenes(size=50), tokenizer, Preprocess(64), 8).batch(9)\n"
        "print(x.images.double().sum().item(), x.tokens.tolist(), x.ids.tolist(), x.keys)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    x = batches(tokenizer).batch(9)
    assert said == f"{x.images.double().sum().item()} {x.tokens.tolist()} {x.ids.tolist()} {x.keys}\n"


def test_wrong_arguments_are_named(tokenizer):
    with pytest.raises(ValueError, match="batch_size"):
        TrainingBatches(Scenes(size=4), tokenizer, Preprocess(64), 8)
    with pytest.raises(ValueError, match="step"):
        batches(tokenizer).batch(-1)
