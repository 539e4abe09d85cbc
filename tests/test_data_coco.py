"""COCO caption folders, on one that the test writes, and what is said of those that are broken."""

import json

import pytest
from PIL import Image

from fastfuse.data import CocoCaptions, open_dataset


@pytest.fixture
def folder(tmp_path):
    """40 pictures of 40 x 30, image 2 without a caption, image 5 with words for sides."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for i in range(40):
        name = f"{i:012d}.{'png' if i % 2 else 'jpg'}"
        Image.new("RGB", (40, 30), (i, 0, 255 - i)).save(tmp_path / "images" / name)
        images.append({"id": i, "file_name": name})
        for word in ("plate", "dish") if i != 2 else ():
            side = " on the left" if i == 5 else ""
            annotations.append({"id": len(annotations), "image_id": i, "caption": f" A {word}  number {i}{side}.\n"})
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return tmp_path


def read(folder, **options):
    return CocoCaptions(folder / "captions.json", folder / "images", **options)


def test_pictures_come_with_all_their_captions(folder):
    data = open_dataset(f"coco:{folder}/captions.json:{folder}/images/", "all")
    assert len(data) == 39
    example = data.example(2)  # image 3: image 2 has no caption
    assert example.key == "coco/3"
    assert example.captions == data.captions(2) == ("A plate number 3.", "A dish number 3.")
    assert example.image.size == (40, 30)
    assert example.image.getpixel((0, 0)) == (3, 0, 252)


def test_pictures_are_decoded_only_when_asked_for(folder):
    for file in (folder / "images").iterdir():
        file.write_bytes(b"broken")
    data = read(folder, split="all")
    with pytest.raises(ValueError, match=r"000000000000\.jpg can not be decoded"):
        data.example(0)


def test_captions_that_tell_sides_forbid_flips(folder):
    flips = {e.key: "flip" in e.augmentations for e in map(read(folder, split="all").example, range(39))}
    assert [key for key, flip in flips.items() if not flip] == ["coco/5"]


def test_splits_are_disjoint_and_whole(folder):
    keys = {
        split: {data.captions(i)[0] for i in range(len(data))}
        for split, data in ((split, read(folder, split=split)) for split in ("train", "heldout", "all"))
    }
    assert keys["train"] | keys["heldout"] == keys["all"]
    assert not keys["train"] & keys["heldout"]


def test_size_takes_a_seeded_choice(folder):
    chosen = [read(folder, split="all", size=5, seed=seed).captions(0) for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(read(folder, split="all", size=5)) == 5


@pytest.mark.parametrize(
    ("caption", "exact"), [("a plate number 0", 1.0), ("A  dish number 0.", 1.0), ("a plate number 1", 0.0)]
)
def test_exact_match_looks_past_case_blanks_and_full_stop(folder, caption, exact):
    data = read(folder, split="all")
    assert data.grade(caption, data.example(0)) == {"exact": exact}


def test_missing_files_are_named(folder):
    with pytest.raises(FileNotFoundError, match=r"annotations: .*nothing\.json"):
        CocoCaptions(folder / "nothing.json", folder / "images")
    with pytest.raises(FileNotFoundError, match=r"images: .*nowhere"):
        CocoCaptions(folder / "captions.json", folder / "nowhere")
    data = read(folder, split="all")
    (folder / "images" / "000000000000.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"000000000000\.jpg"):
        data.example(0)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", 'no list "images"'),
        ('{"images": 3}', 'no list "images"'),
        ('{"images": []}', 'no list "annotations"'),
        ('{"images": [3], "annotations": []}', r"images\[0\]: expected an object, got int"),
        ('{"images": [{"id": 1}], "annotations": []}', r'images\[0\]: expected "file_name" to be str, got None'),
        (
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "annotations": []}',
            r"images\[1\]: a second image with id 1",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 2, "caption": "c"}]}',
            r"annotations\[0\]: image_id 2 is not among the images",
        ),
        ('{"images": [], "annotations": []}', "no image with a caption in split 'all'"),
    ],
)
def test_malformed_json_is_explained(folder, document, message):
    (folder / "captions.json").write_text(document)
    with pytest.raises(ValueError, match=message):
        read(folder, split="all")


@pytest.mark.parametrize("spec", ["", "imagenet", "coco", "coco:", "coco:captions.json", "coco::images", "scenes:3"])
def test_unknown_specs_are_refused(spec):
    with pytest.raises(ValueError, match="spec"):
        open_dataset(spec)


@pytest.mark.parametrize("name", ["scenes", "digits"])
def test_generated_datasets_open_by_name(name):
    data = open_dataset(name, "heldout", seed=3, size=12)
    assert (data.name, data.split, len(data)) == (name, "heldout", 12)
    assert data.example(11).captions == data.captions(11)
