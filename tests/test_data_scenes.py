"""Scenes: the grammar and its inverse, legible pictures, and a split that keeps its promise."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfuse.data import Scenes
from fastfuse.data.grammar import AXES, COLOURS, SHAPES, SIZES, TEXTURES, Scene, Thing, describe, parse
from fastfuse.data.scenes import ALL_LOOKS, HELDOUT_LOOKS, TRAIN_LOOKS
from fastfuse.data.sprites import ROTATIONS, ink_mask, shape_mask


@st.composite
def scenes(draw):
    count = draw(st.integers(1, 3))
    sizes = st.just("small") if count == 3 else st.sampled_from(SIZES)
    thing = st.builds(Thing, st.sampled_from(COLOURS), st.sampled_from(SHAPES), sizes, st.sampled_from(TEXTURES))
    things = draw(st.lists(thing, min_size=count, max_size=count))
    return Scene(tuple(things), draw(st.sampled_from(AXES)) if count > 1 else None)


@given(scenes())
def test_every_caption_parses_back_to_its_scene(scene):
    captions = describe(scene)
    assert len(set(captions)) == len(captions) >= 3
    for caption in captions:
        assert parse(caption) == scene
        assert len(caption.split()) <= 16


@pytest.mark.parametrize(
    "nonsense",
    [
        "",
        "a",
        "a large circle",
        "a large red circle left of",
        "a large red circle beside a small red star",
        "red circle then red star from left to right",
        "red circle then red star then blue",
        "a large plain red circle",
        "a large striped dotted red circle",
        "then then then",
    ],
)
def test_what_is_no_sentence_of_the_grammar_parses_to_none(nonsense):
    assert parse(nonsense) is None


def looks(caption):
    return {(thing.colour, thing.shape, thing.texture) for thing in parse(caption).things}


def test_heldout_looks_never_occur_in_training_and_always_in_heldout():
    train, heldout = Scenes("train", size=2000), Scenes("heldout", size=2000)
    for i in range(2000):
        assert not looks(train.captions(i, epoch=i % 3)[0]) & set(HELDOUT_LOOKS)
        assert looks(heldout.captions(i)[0]) & set(HELDOUT_LOOKS)


def test_training_shows_every_two_of_a_heldout_look_together():
    assert len(ALL_LOOKS) == 108
    assert len(HELDOUT_LOOKS) == 18
    for kept in itertools.combinations(range(3), 2):
        assert {tuple(look[i] for i in kept) for look in TRAIN_LOOKS} == {tuple(x[i] for i in kept) for x in ALL_LOOKS}


def test_no_heldout_caption_is_a_training_caption():
    train = {caption for i in range(2000) for caption in Scenes("train", size=2000).captions(i)}
    heldout = {caption for i in range(2000) for caption in Scenes("heldout", size=2000).captions(i)}
    assert not train & heldout


def test_an_index_and_epoch_name_one_picture():
    first, again = Scenes(seed=3).example(7, epoch=2), Scenes(seed=3).example(7, epoch=2)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.captions == again.captions == Scenes(seed=3).captions(7, epoch=2)
    others = [Scenes(seed=3).example(7), Scenes(seed=3).example(8, 2), Scenes(seed=4).example(7, 2)]
    assert all(other.image.tobytes() != first.image.tobytes() and other.key != first.key for other in others)


def test_objects_stand_where_the_captions_say():
    """What is not ground falls into as many runs along the axis as there are objects, with a gap between them."""
    data = Scenes("all", size=300)
    for example in data_examples(data):
        things, axis = example.attributes["things"], example.attributes["axis"]
        pixels = np.asarray(example.image).astype(int)
        assert pixels.shape == (64, 64, 3)
        drawn = np.abs(pixels - pixels[0, 0]).max(-1) > 8
        assert not drawn[[0, -1], :].any()
        assert not drawn[:, [0, -1]].any()
        if axis is not None:
            occupied = drawn.any(0 if axis == "horizontal" else 1).astype(int)
            assert (np.diff(occupied) == 1).sum() == len(things)


def data_examples(data):
    return [data.example(i) for i in range(len(data))]


def two_objects():
    data = Scenes(size=200)
    return data, next(e for e in data_examples(data) if len(e.attributes["things"]) == 2)


def test_every_valid_caption_gets_full_marks():
    data, example = two_objects()
    for caption in example.captions:
        grades = data.grade(caption, example)
        assert set(grades) == {"exact", "count", "colour", "shape", "size", "texture", "relation"}
        assert set(grades.values()) == {1.0}


def test_one_wrong_attribute_costs_that_attribute_alone():
    data, example = two_objects()
    scene = parse(example.captions[0])
    first, second = scene.things
    other = Thing(next(c for c in COLOURS if c != first.colour), first.shape, first.size, first.texture)
    grades = data.grade(describe(Scene((other, second), scene.axis))[0], example)
    assert grades.pop("exact") == 0.0
    assert grades.pop("colour") == 0.5
    assert set(grades.values()) == {1.0}


def test_nonsense_and_missing_objects_cost_what_they_miss():
    data, example = two_objects()
    assert set(data.grade("a a a", example).values()) == {0.0}
    only_first = describe(Scene(parse(example.captions[0]).things[:1]))[0]
    grades = data.grade(only_first, example)
    assert (grades["count"], grades["shape"], grades["relation"]) == (0.0, 0.5, 0.0)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="split"):
        Scenes("test")
    with pytest.raises(ValueError, match="size"):
        Scenes(size=0)
    with pytest.raises(IndexError, match="index: 5"):
        Scenes(size=5).example(5)


@pytest.mark.parametrize("shape", SHAPES)
def test_sprites_leave_a_free_border(shape):
    for size, rotation in itertools.product(SIZES, ROTATIONS):
        mask = np.asarray(shape_mask(shape, size, rotation))
        assert mask.max() == 255
        assert not mask[[0, -1], :].any()
        assert not mask[:, [0, -1]].any()
        for texture in TEXTURES[1:]:
            ink = np.asarray(ink_mask(shape, size, texture, rotation)).astype(int)
            assert (ink <= mask).all()
            assert 0.1 < ink.sum() / mask.sum() < 0.6
