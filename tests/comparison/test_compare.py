"""Comparison of methods: metrics, table, sheet, files, and methods that cannot run."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from helpers.rival_checkpoints import write_rivals
from vip2clip_hf import ViP2ClipImageProcessor, evaluate_detector, load_folder
from vip2clip_hf.baselines import BaselineDetector, methods
from vip2clip_hf.baselines.methods import create_model
from vip2clip_hf.baselines.saving import write_baseline
from vip2clip_hf.cli import app
from vip2clip_hf.comparison import compare_methods, comparing
from vip2clip_hf.comparison.competitors import load_competitors
from vip2clip_hf.comparison.sheet import choose_rows, draw_comparison
from vip2clip_hf.comparison.table import comparison_table
from vip2clip_hf.data.synthetic.dataset import generate_image, write_dataset


# Its fixtures take seconds: one process computes them once.
pytestmark = pytest.mark.xdist_group("compare")


QUICK = ("clip", "april-gan", "anomalyclip", "adaclip", "vip2clip")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_rivals(tmp_path_factory.mktemp("rivals"))


@pytest.fixture(scope="module")
def folder(models):
    return Path(models["vip2clip"]).parent


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "parts"
    return write_dataset(root, ("stripes", "weave"), num_normal=3, num_anomalous=1, size=48, num_train=2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "photos"
    root.mkdir()
    for number in range(3):
        generate_image("weave", None, 48, seed=number)[0].save(root / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def compared(folder, models, labelled, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "comparison"
    result = compare_methods(labelled, QUICK, clip=folder / "clip", models=models, device="cpu", output=output, rows=3)
    return result, output


@pytest.mark.slow
def test_quality_is_that_of_the_evaluation(compared, folder, models, labelled):
    result, _ = compared
    for one, record in zip(load_competitors(QUICK, clip=folder / "clip", models=models), result["methods"]):
        dataset = load_folder(labelled)
        mean = evaluate_detector(one.subject.detectors(dataset["category"], None), dataset, batch_size=4)["mean"]
        for metric in ("image_auroc", "pixel_auroc", "pixel_aupro"):
            assert record[metric] == pytest.approx(mean[metric], abs=1e-6), (one.key, metric)
        assert record["reason"] is None
        assert record["undefined"] == {}


def test_times_and_memory(compared):
    for record in compared[0]["methods"]:
        assert 0 < record["own_ms"] < record["ms"]
        assert record["ms"] == pytest.approx(record["own_ms"] + record["tower_ms"])
        assert 1e7 < record["peak_memory"] < 1e11
        assert len(record["shared_tower"]) == 4
    assert len({record["tower_ms"] for record in compared[0]["methods"]}) == 1
    assert any("ran once for all of them" in note for note in compared[0]["notes"])
    assert any(note.startswith("Memory: ") for note in compared[0]["notes"])


@pytest.mark.slow
def test_files(compared, labelled):
    result, output = compared
    assert {path.name for path in output.iterdir()} == {"results.json", "scores.csv", "table.md", "sheet.png"}
    assert json.loads((output / "results.json").read_text()) == json.loads(json.dumps(result))
    rows = list(csv.DictReader((output / "scores.csv").read_text().splitlines()))
    dataset = load_folder(labelled)
    assert [row["image_id"] for row in rows] == dataset["image_id"] == result["images"]
    for key in QUICK:
        assert [float(row[key]) for row in rows] == result["scores"][key]
    assert [row["label"] for row in rows] == [("normal", "anomalous")[label] for label in dataset["label"]]
    page = (output / "table.md").read_text(encoding="utf-8")
    for text in ("APRIL-GAN", "image AUROC", "AUPRO", "https://arxiv.org/abs/2305.17382", "shared tower, ms"):
        assert text in page
    with Image.open(output / "sheet.png") as sheet:
        assert min(sheet.size) > 200


def test_an_earlier_comparison_is_kept(compared, folder, models, photos):
    _, output = compared
    before = (output / "results.json").read_bytes()
    with pytest.raises(OSError, match=r"contains results\.json of an earlier comparison"):
        compare_methods(photos, "clip", clip=folder / "clip", output=output)
    assert (output / "results.json").read_bytes() == before
    with pytest.raises(OSError, match="is inside"):
        compare_methods(photos, "clip", clip=folder / "clip", output=photos / "out")


@pytest.mark.slow
def test_photos_without_labels(folder, models, photos, tmp_path):
    arguments = {"clip": folder / "clip", "models": models, "device": "cpu", "batch_size": 2}
    result = compare_methods(photos, QUICK, output=tmp_path / "out", **arguments)
    assert (result["labelled"], result["num_images"]) == (False, 3)
    for record in result["methods"]:
        assert record["image_auroc"] is None
        assert record["undefined"]["pixel_aupro"] == "the photos have no labels"
    assert "There is no column image AUROC: the photos have no labels." in result["notes"]
    table = comparison_table(result["methods"])
    assert "AUROC" not in table
    assert "ms per photo" in table
    # Without labels, the folder says nothing about the class: "object".
    again = compare_methods(photos, "clip", clip=folder / "clip", device="cpu", class_name="object")
    other = compare_methods(photos, "clip", clip=folder / "clip", device="cpu", class_name="cable")
    assert again["scores"]["clip"] == pytest.approx(result["scores"]["clip"], abs=1e-6)
    assert other["scores"]["clip"] != pytest.approx(result["scores"]["clip"], abs=1e-6)


def test_labels_of_some_photos(folder, tmp_path):
    write_dataset(tmp_path / "some", ("weave",), num_normal=2, num_anomalous=1, size=48)
    first, second = sorted((tmp_path / "some" / "weave" / "test" / "good").iterdir())[:2]
    rows = ["image,label", f"weave/test/good/{first.name},good", f"weave/test/good/{second.name},"]
    (tmp_path / "some" / "list.csv").write_text("\n".join(rows))
    with pytest.raises(ValueError, match="1 of 2 photos have no label; expected labels for all or none"):
        compare_methods(tmp_path / "some" / "list.csv", "clip", clip=folder / "clip")


@pytest.mark.slow
def test_methods_that_cannot_run(folder, photos):
    result = compare_methods(photos, "all", clip=folder / "clip", device="cpu")
    by_key = {record["method"]: record for record in result["methods"]}
    assert list(by_key) == ["clip", "winclip", "april-gan", "anomalyclip", "adaclip", "vip2clip"]
    for key in ("april-gan", "anomalyclip", "adaclip"):
        assert "needs trained weights: --model" in by_key[key]["reason"]
        assert key not in result["scores"]
    assert all(by_key[key]["reason"] is None for key in ("clip", "winclip", "vip2clip"))
    table = comparison_table(result["methods"])
    assert "not run" in table
    assert "--model april-gan=CHECKPOINT" in table
    # The bundled checkpoint has another backbone.
    assert any("Not all methods have the same weights" in note for note in result["notes"])
    assert any("different sizes" in note for note in result["notes"])
    with pytest.raises(ValueError, match="APRIL-GAN needs trained weights"):
        compare_methods(photos, ["clip", "april-gan"], clip=folder / "clip")
    with pytest.raises(ValueError, match="belongs to AnomalyCLIP; expected a checkpoint of APRIL-GAN"):
        compare_methods(photos, "all", clip=folder / "clip", models={"april-gan": folder / "anomalyclip"})


@pytest.mark.slow
def test_adapters_of_the_package(photos, tmp_path, monkeypatch):
    """On the bundled backbone, the trained methods use them. They share the tower with the untrained ones."""
    model = create_model("april-gan", "bundled", image_size=64)
    write_baseline(model, ViP2ClipImageProcessor(size=64), tmp_path / "april-gan", adapters_only=True)
    monkeypatch.setattr(methods, "_TRAINED", tmp_path)
    result = compare_methods(photos, "clip,april-gan", device="cpu")
    weights = {record["method"]: record["weights"] for record in result["methods"]}
    assert weights == {"clip": "bundled backbone", "april-gan": "bundled adapters"}
    assert any("prompts has no meaning: CLIP, the image scores of APRIL-GAN. Use" in note for note in result["notes"])
    detector = BaselineDetector(model, ViP2ClipImageProcessor(size=64), class_name="object")
    images = [Image.open(photos / f"{number}.png").convert("RGB") for number in range(3)]
    expected = detector.score(detector.prepare(images))[0].tolist()
    assert result["scores"]["april-gan"] == pytest.approx(expected, abs=1e-6)


def test_invalid_arguments(folder, photos, tmp_path):
    for options, message in (
        ({"methods": "clip,patchcore"}, "methods contains 'patchcore'; expected 'all', or some of clip, winclip"),
        ({"methods": "clip,clip"}, "expected at least one method, each once"),
        ({"methods": []}, "expected at least one method"),
        ({"methods": "clip", "models": {"adaclip": "x"}}, "models contains 'adaclip'"),
        ({"methods": "clip", "rows": 0}, "rows is 0"),
        ({"methods": "clip", "fpr_limit": 3}, "fpr_limit"),
    ):
        with pytest.raises(ValueError, match=message):
            compare_methods(photos, **{"clip": folder / "clip", **options})
    with pytest.raises(OSError, match=r"folder of references .* is not found"):
        compare_methods(photos, "clip", clip=folder / "clip", references=tmp_path / "absent")


@pytest.mark.slow
def test_references_are_read_as_the_photos(models, tmp_path):
    """`page` and `bit_depth` apply to both: a page of a file with references is the same as a file with this page."""
    dark = [generate_image("weave", None, 48, seed=number)[0] for number in range(4)]
    light = [generate_image("stripes", None, 48, seed=number)[0] for number in range(4)]
    for name in ("photos", "good", "paged", "paged_good"):
        (tmp_path / name).mkdir()
    for number in range(4):
        of = "good" if number > 1 else "photos"
        path = tmp_path / f"paged{'_good' if number > 1 else ''}" / f"{number}.tif"
        light[number].save(path, save_all=True, append_images=[dark[number]])
        dark[number].save(tmp_path / of / f"{number}.tif")
    arguments = {"models": {key: models[key] for key in ("vip2clip", "april-gan")}, "device": "cpu"}
    methods = ("vip2clip", "april-gan")
    plain = compare_methods(tmp_path / "photos", methods, references=tmp_path / "good", **arguments)
    paged = compare_methods(tmp_path / "paged", methods, references=tmp_path / "paged_good", page=2, **arguments)
    for key in methods:
        assert paged["scores"][key] == pytest.approx(plain["scores"][key], abs=1e-6)
    # The setting of a checkpoint holds for its method.
    processor = ViP2ClipImageProcessor(size=32, page=2)
    write_baseline(methods_model(models["april-gan"]), processor, tmp_path / "april-gan")
    own = compare_methods(tmp_path / "paged", "april-gan", models={"april-gan": tmp_path / "april-gan"}, device="cpu")
    without = compare_methods(
        tmp_path / "photos", "april-gan", models={"april-gan": models["april-gan"]}, device="cpu"
    )
    assert own["scores"]["april-gan"] == pytest.approx(without["scores"]["april-gan"], abs=1e-6)


def methods_model(checkpoint):
    return methods.find_method("april-gan").model_class.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    ("chosen", "options", "message"),
    [
        ("clip", {"references": "weave/train"}, r"none of the methods uses references \(CLIP\); remove it"),
        ("vip2clip,anomalyclip", {"class_name": "nut"}, r"none of the methods uses class names \(ViP²-CLIP, Anomaly"),
        ("vip2clip", {"clip": "nowhere/else"}, "clip .* is 'nowhere/else', but all methods have weights of their own"),
        ("clip", {"class_name": {"weeve": "cloth"}}, "the category 'weeve'; expected 'stripes', 'weave'"),
    ],
)
def test_what_has_no_effect_is_refused(chosen, options, message, folder, models, labelled):
    options = dict(options)
    if "references" in options:
        options["references"] = labelled / options["references"]
    if chosen == "clip":
        options["clip"] = folder / "clip"
    own = {key: models[key] for key in chosen.split(",") if key in models and key != "clip"}
    with pytest.raises(ValueError, match=message):
        compare_methods(labelled, chosen, models=own, device="cpu", **options)


def test_weights_with_the_same_name(models, photos, tmp_path):
    """Folders are often called "outputs". The table and its notes tell them apart."""
    own = {}
    for key in ("april-gan", "anomalyclip"):
        own[key] = shutil.copytree(models[key], tmp_path / key / "outputs")
    result = compare_methods(photos, list(own), models=own, device="cpu")
    assert [record["weights"] for record in result["methods"]] == list(map(str, own.values()))
    assert any("Not all methods have the same weights" in note for note in result["notes"])


def test_class_names_without_labels(folder, photos, tmp_path):
    """Categories that --class-name does not name are objects, as without --class-name."""
    rows = []
    for number, name in enumerate(("one", "two", "two")):
        (tmp_path / f"{number}.png").write_bytes((photos / f"{number}.png").read_bytes())
        rows.append(f"{number}.png,{name},test")
    (tmp_path / "list.csv").write_text("\n".join(["image,category,split", *rows]))
    arguments = {"methods": "clip", "clip": folder / "clip", "device": "cpu"}
    unnamed, named, other = (
        compare_methods(tmp_path / "list.csv", class_name=names, **arguments)["scores"]["clip"]
        for names in (None, {"one": "object"}, {"one": "cable"})
    )
    assert named == pytest.approx(unnamed, abs=1e-6)
    assert other[1:] == pytest.approx(unnamed[1:], abs=1e-6)
    assert abs(other[0] - unnamed[0]) > 1e-6


def test_scores_that_are_not_finite(folder, photos, monkeypatch):
    """Also without labels, where no metric is computed: an empty score means a photo that cannot be read."""
    score = BaselineDetector.score

    def broken(self, *args, **kwargs):
        scores, maps = score(self, *args, **kwargs)
        return torch.full_like(scores, math.nan), maps

    monkeypatch.setattr(BaselineDetector, "score", broken)
    with pytest.raises(ValueError, match=r"The scores of CLIP contain NaN or infinite values.*0\.png"):
        compare_methods(photos, "clip", clip=folder / "clip", device="cpu")


def test_unreadable_photos(folder, photos, tmp_path):
    damaged = tmp_path / "photos"
    damaged.mkdir()
    for path in photos.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    (damaged / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    arguments = {"methods": "clip", "clip": folder / "clip", "device": "cpu"}
    with pytest.raises(OSError, match=r"1\.png"):
        compare_methods(damaged, **arguments)
    result = compare_methods(damaged, skip_unreadable=True, output=tmp_path / "out", **arguments)
    assert list(result["unreadable"]) == ["1.png"]
    assert [score is None for score in result["scores"]["clip"]] == [False, True, False]
    assert (tmp_path / "out" / "scores.csv").read_text().splitlines()[2] == "1.png,photos,,"


def test_the_rows_of_the_sheet(labelled, photos):
    dataset = load_folder(labelled)
    chosen = choose_rows(dataset, 4)
    assert chosen == choose_rows(dataset, 4)
    assert [dataset[position]["label"] for position in chosen] == [1, 1, 1, 0]
    assert choose_rows(load_folder(photos), 2) == [0, 2]
    assert choose_rows(load_folder(photos), 9) == [0, 1, 2]


@pytest.mark.slow
def test_the_sheet_has_one_scale(compared, folder, models, labelled, monkeypatch):
    """Each map divided by the number of maps that its method adds up, from 0 to 1 for all."""
    drawn = {}

    def draw(dataset, positions, measurements, *arguments):
        figure = draw_comparison(dataset, positions, measurements, *arguments)
        drawn.update(positions=positions, measurements=measurements, axes=figure.axes)
        return figure

    monkeypatch.setattr(comparing, "draw_comparison", draw)
    compare_methods(labelled, QUICK, clip=folder / "clip", models=models, device="cpu", rows=2,
                    output=labelled.parent / "out")  # fmt: skip
    columns = 2 + len(QUICK)  # photo, ground truth, methods
    assert [axis.get_title() for axis in drawn["axes"][:columns]] == [
        "photo", "ground truth", "CLIP", "APRIL-GAN", "AnomalyCLIP", "AdaCLIP", "ViP²-CLIP"
    ]  # fmt: skip
    assert [one.map_maximum for one in drawn["measurements"]] == [1, 2, 2, 1, 1]
    for row, position in enumerate(drawn["positions"]):
        for column, one in enumerate(drawn["measurements"]):
            image = drawn["axes"][row * columns + 2 + column].images[-1]
            assert image.get_clim() == (0, 1)
            np.testing.assert_allclose(np.asarray(image.get_array()), one.maps[position] / one.map_maximum, atol=1e-6)
    assert "divided by the number of maps" in drawn["axes"][-1].get_xlabel()


# The command


def run(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def test_the_command(folder, models, labelled, tmp_path):
    arguments = [f"--model={key}={path}" for key, path in models.items()]
    good = labelled / "weave" / "train"
    arguments += ["--methods", ",".join(QUICK), "--clip", folder / "clip", "--device", "cpu", "--rows", 2]
    done = run(labelled, *arguments, "--output", tmp_path / "out", "--references", good, "--category", "stripes")
    assert done.exit_code == 0, done.output
    for text in ("CLIP", "APRIL-GAN", "AnomalyCLIP", "ViP²-CLIP", "image AUROC", "references", "sheet.png"):
        assert text in done.stdout
    assert "Zero-shot, because the method does not use references: CLIP, AnomalyCLIP, AdaCLIP." in done.stdout
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [record["references"] for record in result["methods"]] == [0, 2, 0, 0, 2]
    assert list(result["references"]) == ["stripes"]


def test_the_command_with_json(folder, photos):
    done = run(photos, "--methods", "clip", "--clip", folder / "clip", "--json", "--device", "cpu")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["methods"][0]["method"] == "clip"
    assert math.isfinite(result["scores"]["clip"][0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "patchcore"], "contains 'patchcore'"),
        (["--methods", "clip", "--model", "clip"], "--model is for 'vip2clip'; expected one of the compared methods"),
        (["--methods", "clip", "--model", "adaclip=x"], "expected one of the compared methods"),
        (["--class-name", "a", "--class-name", "b"], "expected CATEGORY=NAME"),
    ],
)
def test_wrong_usage(arguments, message, photos):
    done = run(photos, *arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
