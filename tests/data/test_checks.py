import json
import re

import numpy as np
import pytest
from PIL import Image

from helpers.benchmark_trees import Writer, btad_official, kvasir_official
from vip2clip_hf import cli
from vip2clip_hf.data.checks import check_data
from vip2clip_hf.data.loading import index_benchmark, index_folder
from vip2clip_hf.data.synthetic.dataset import write_dataset


@pytest.fixture
def writer(tmp_path):
    """Two good images, three bad ones with masks."""
    writer = Writer(tmp_path / "data")
    for number in range(2):
        writer.image(f"good/{number}.png")
    for number in range(3):
        writer.image(f"bad/{number}.png")
        writer.mask(f"masks/{number}.png")
    return writer


def test_no_problems(writer):
    check = check_data(index_folder(writer.root))
    assert (check.checked, check.problems, check.notes) == (5, {}, {})
    assert str(check) == "Checked 5 images and their masks: no problems."
    assert len(check.usable.to_dataset()) == 5


def test_problems_are_listed_and_other_images_are_usable(writer):
    (writer.root / "good" / "0.png").write_bytes(b"no image")
    content = (writer.root / "bad" / "0.png").read_bytes()
    (writer.root / "bad" / "0.png").write_bytes(content[: len(content) // 2])
    (writer.root / "masks" / "1.png").write_bytes(b"broken")
    Image.new("L", (5, 8)).save(writer.root / "masks" / "2.png")
    index = index_folder(writer.root)
    check = check_data(index)
    assert {kind: [name.split(" (")[0] for name in names] for kind, names in check.problems.items()} == {
        "unreadable images": ["good/0.png", "bad/0.png"],
        "unreadable masks": ["bad/1.png"],
        "masks with a different size than the image": ["bad/2.png"],
    }
    lines = str(check).splitlines()
    assert lines[:4] == ["Checked 5 images and their masks: 4 problems.", "", "Problems:", "  unreadable images (2):"]
    assert lines[-2] == "  masks with a different size than the image (1):"
    assert re.fullmatch(
        r"    bad/2.png \(Mask '.*2.png' has 8 x 5 pixels \(height x width\); expected 8 x 8, the size of image "
        r"'.*2.png'\.\)",
        lines[-1],
    )
    dataset = check.usable.to_dataset()
    assert dataset["image_id"] == ["good/1.png", "bad/1.png", "bad/2.png"]
    assert [row["mask"] for row in dataset] == [None, None, None]
    assert len(index.rows) == 5  # the index itself is unchanged


def test_contradiction(writer):
    """A mask folder for the normal images. One of the masks has an anomalous pixel."""
    writer.image("good/7.png")
    writer.mask("masks/good/7.png", empty=False)
    writer.mask("masks/good/1.png", empty=True)
    for number in range(3):
        writer.mask(f"masks/bad/{number}.png")
    check = check_data(index_folder(writer.root))
    assert check.problems == {"normal images with anomalous pixels in the mask": ["good/7.png (1 px)"]}


def test_notes(writer):
    writer.mask("masks/0.png", empty=True)
    noisy = np.full((8, 8), 3, dtype=np.uint8)
    noisy[0, 0] = 250
    Image.fromarray(noisy).save(writer.root / "masks" / "1.png")
    (writer.root / "good" / "copy.png").write_bytes((writer.root / "good" / "1.png").read_bytes())
    check = check_data(index_folder(writer.root))
    assert check.problems == {}
    assert check.warnings == {
        "anomalous images with an empty mask at this mask threshold, still counted as anomalous": ["bad/0.png"],
        "masks with noise near 0 counted as anomalous; use a mask threshold of 127 for JPEG masks": ["bad/1.png"],
        "masks of anomalous images that mark the whole image": ["bad/1.png"],
    }
    assert check.notes == {"duplicate images (identical files), all kept": ["good/copy.png (same as good/1.png)"]}
    assert str(check).startswith("Checked 6 images and their masks: no problems, 3 warnings.\n\nWarnings:\n  ")
    assert check_data(index_folder(writer.root), mask_threshold=127).warnings.keys() < check.warnings.keys()


def test_class_ids_are_not_noise(writer):
    marked = np.zeros((8, 8), dtype=np.uint8)
    marked[0, :3] = 1, 2, 9
    Image.fromarray(marked).save(writer.root / "masks" / "1.png")
    check = check_data(index_folder(writer.root))
    assert (check.notes, check.warnings) == ({}, {})


def test_masks_read_by_a_rule_are_warnings(tmp_path):
    """Alpha, palettes, pages and orientation: each is said with its images, and `--strict` fails."""
    root, defect = tmp_path / "data", np.zeros((8, 8), dtype=np.uint8)
    defect[1:3, 2:5] = 255
    mask, exif = Image.fromarray(defect), Image.Exif()
    exif[0x0112] = 3
    palette = Image.fromarray((defect > 0).astype(np.uint8)).convert("L")
    palette.putpalette([255, 255, 255, 0, 0, 0])
    alpha = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    alpha.putalpha(mask)
    for folder in ("good", "bad", "masks"):
        (root / folder).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "good" / "0.png")
    for number, (name, options, saved, saving) in enumerate(
        (
            ("alpha.png", {}, alpha, {}),
            ("orientation.png", {"exif": exif}, mask, {}),
            ("pages.png", {}, mask, {"save_all": True, "append_images": [mask]}),
            ("palette.png", {}, palette, {}),
        )
    ):
        Image.new("RGB", (8, 8), (number, 9, 9)).save(root / "bad" / name, **options)
        saved.save(root / "masks" / name.replace("pages.png", "pages.tif"), **saving)
    check = check_data(index_folder(root))
    assert (check.problems, check.notes) == ({}, {})
    found = {" ".join(kind.split()[:4]): names for kind, names in check.warnings.items()}
    assert found == {
        "masks read from their": ["bad/alpha.png"],
        "masks rotated by the": ["bad/orientation.png"],
        "masks with several pages,": ["bad/pages.png"],
        "masks with a palette": ["bad/palette.png"],
    }


def test_mask_threshold_of_a_benchmark(tmp_path):
    check = check_data(index_benchmark("kvasir", kvasir_official(tmp_path / "k").root))
    assert (check.notes, check.warnings) == ({}, {})
    lossy = check_data(index_benchmark("kvasir", tmp_path / "k"), mask_threshold=0)
    assert any(kind.startswith("masks with noise") for kind in lossy.warnings)
    check = check_data(index_benchmark("btad", btad_official(tmp_path / "b").root))
    assert (check.problems, check.notes) == ({}, {})
    assert list(check.warnings.values()) == [["02/test/ko/0001.png"]]  # the original mask is empty too


def test_stored_images(tmp_path):
    from datasets import Dataset, Features, Image as ImageFeature

    path = tmp_path / "1.png"
    Image.new("RGB", (4, 4)).save(path)
    cells = [{"bytes": path.read_bytes(), "path": None}, {"bytes": b"broken", "path": None}]
    stored = Dataset.from_dict({"image": cells}, features=Features({"image": ImageFeature()}))
    stored.to_parquet(tmp_path / "t.parquet")
    check = check_data(index_folder(tmp_path / "t.parquet"))
    assert [name[:3] for name in check.problems["unreadable images"]] == ["1 ("]
    assert check.usable.to_dataset()["image_id"] == ["0"]


# The command


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["vip2clip", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return run


def test_command_prints_a_report(run, writer):
    code, out, _ = run("data", writer.root)
    assert code == 0
    assert "one folder per class (classes)" in out
    assert ["data", "2", "3", "3"] in [line.split() for line in out.splitlines()]


def test_command_reads_columns(run, writer):
    writer.text("t.csv", "bild,befund\ngood/0.png,fein\nbad/0.png,riss\n")
    options = ("--column", "image=bild", "--column", "label=befund", "--normal-label", "fein")
    code, out, _ = run("data", writer.root / "t.csv", *options)
    assert code == 0
    assert "normal: 'fein'; anomalous: 'riss'" in out
    code, _, err = run("data", writer.root / "t.csv", "--column", "bild")
    assert code == 2
    assert "--column is 'bild'; expected NAME=COLUMN, such as image=file_name." in err


def test_command_prints_json(run, writer):
    code, out, _ = run("data", writer.root, "--json", "--check")
    content = json.loads(out)
    assert code == 0
    assert content["layout"] == "classes"
    assert content["total"] == {"normal": 2, "anomalous": 3, "unlabelled": 0, "masks": 3, "expected": None}
    assert content["check"]["problems"] == {}


def test_command_reads_a_benchmark(run, tmp_path):
    code, out, _ = run("data", btad_official(tmp_path).root, "--benchmark", "btad", "--category", "02")
    assert code == 0
    assert "BTAD; the paper evaluates the official test split" in out
    assert "02: 1 normal, 2 anomalous (published: 30 normal, 200 anomalous)" in out
    assert "Licence: CC BY-NC-SA 4.0 (according to anomalib" in out


def test_command_exit_codes(run, writer, tmp_path):
    assert run("data", tmp_path / "absent")[0] == 1
    assert "Error: " in run("data", tmp_path / "absent")[2]
    assert run("data", writer.root, "--benchmark", "mvtech")[0] == 1
    assert run("data", writer.root, "--layout", "tree")[0] == 1
    (writer.root / "masks" / "1.png").unlink()
    assert run("data", writer.root)[0] == 0
    code, out, err = run("data", writer.root, "--strict")
    assert code == 1
    assert "--strict: anomalous images without a mask" in err
    assert "  anomalous images without a mask, used for image metrics and image loss only (1): bad/1.png" in out
    (writer.root / "bad" / "1.png").write_bytes(b"broken")
    code, out, _ = run("data", writer.root, "--check")
    assert code == 3
    assert "unreadable images (1):" in out


@pytest.mark.slow
def test_command_generates_a_dataset(run, tmp_path):
    code, out, _ = run("data", tmp_path / "new", "--synthetic", "--seed", "3")
    assert code == 0
    assert "dots" in out
    code, _, err = run("data", tmp_path / "new", "--synthetic")
    assert code == 1
    assert "not empty; expected a new folder" in err
    again = write_dataset(tmp_path / "again", num_train=8, seed=3)
    image = "dots/test/missing/000.png"
    assert (tmp_path / "new" / image).read_bytes() == (again / image).read_bytes()


def test_command_writes_thirds(run, tmp_path):
    writer = Writer(tmp_path / "ksdd")
    for part in range(2):
        writer.image(f"kos01/Part{part}.jpg")
        writer.mask(f"kos01/Part{part}_label.bmp", empty=part == 0)
    code, out, _ = run("data", writer.root, "--benchmark", "ksdd")
    assert code == 0
    assert "--write-thirds" in out
    code, out, _ = run("data", writer.root, "--write-thirds", tmp_path / "thirds")
    assert code == 0
    assert "other splits: train" in out


STRICT = {
    "nothing": ((), None, 0),
    "a folder of results": (("heatmaps/1.png",), None, 1),
    "an image outside": (("1.png",), None, 1),
    "a mask without an image": (("M:masks/9.png",), None, 1),
    "a photo that Pillow cannot open": (("T:good/1.dng",), None, 1),
    "a text": (("T:notes.txt",), None, 0),
    "a hidden file": ((".hidden/1.png",), None, 0),
    "a guessed name": (("good_2/1.png",), None, 1),
    "a guessed defect": (("scratch/1.png", "M:masks/scratch/1.png"), None, 1),
    "a link": ((), "self", 1),
}


@pytest.mark.parametrize("name", STRICT)
@pytest.mark.parametrize("check", [(), ("--check",)])
def test_command_strict_fails_for_everything_left_out_or_guessed(run, writer, name, check):
    paths, link, expected = STRICT[name]
    for path in paths:
        kind, _, rest = path.rpartition(":")
        {"M": writer.mask, "T": writer.text}.get(kind, writer.image)(rest)
    if link is not None:
        (writer.root / "good" / link).symlink_to(link)
    code, _, err = run("data", writer.root, "--strict", *check)
    assert code == expected, err
    assert ("--strict: " in err) == bool(expected)
    assert run("data", writer.root, *check)[0] == 0


def test_command_strict_with_problems_only(run, writer):
    (writer.root / "bad" / "1.png").write_bytes(b"broken")
    assert run("data", writer.root, "--strict", "--check")[0] == 3
    assert run("data", writer.root, "--strict")[0] == 0


def test_command_strict_with_notes_of_the_check(run, writer):
    writer.mask("masks/0.png", empty=True)
    code, _, err = run("data", writer.root, "--strict", "--check")
    assert code == 1
    assert "--strict: anomalous images with an empty mask" in err


def test_command_reads_names_of_folders(run, writer):
    writer.image("fein/1.png")
    writer.image("riss/7.png")
    labels = ("--normal-label", "fein", "--normal-label", "good", "--anomalous-label", "riss")
    code, out, _ = run("data", writer.root, *labels, "--anomalous-label", "bad")
    assert code == 0
    assert ["data", "3", "4", "3"] in [line.split() for line in out.splitlines()]
    code, _, err = run("data", writer.root, "--normal-label", "absent")
    assert code == 1
    assert "absent" in err


def test_command_counts_images_left_out_on_the_first_line(run, writer):
    writer.image("1.png")
    code, out, _ = run("data", writer.root)
    assert code == 0
    assert out.splitlines()[0] == f"{writer.root}: 1 of 6 images are left out"
