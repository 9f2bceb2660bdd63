"""Output folders: results are reused for the same contents only, and nothing of the user is replaced or deleted."""

import json
import os
import shutil
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from helpers.evaluations import assert_same_results
from helpers.files import files_in
from helpers.odd_data import Case, parametrize, run
from helpers.predictions import rows_of
from helpers.tiny import change_weights, tiny_config
from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.data.sources import DataSource
from vip2clip_hf.evaluation import runner, subjects
from vip2clip_hf.evaluation.runner import evaluate_sets
from vip2clip_hf.inference import batches, prediction
from vip2clip_hf.inference.prediction import predict_to_folder
from vip2clip_hf.models.vip2clip.modeling_vip2clip import ViP2ClipAnomalyDetectionOutput
from vip2clip_hf.utils import contents, file_state


class FastModel(ViP2ClipForAnomalyDetection):
    """Maps are the first channel of the image and scores their mean, so a run takes milliseconds."""

    def forward(self, pixel_values, top_k=None, **_):
        maps = torch.sigmoid(pixel_values[:, 0].float())
        return ViP2ClipAnomalyDetectionOutput(scores=maps.mean((1, 2)), anomaly_maps=maps)


def build_model() -> ViP2ClipForAnomalyDetection:
    torch.manual_seed(0)
    model = FastModel(tiny_config()).eval()
    change_weights(model)
    return model


MODEL, PROCESSOR = build_model(), ViP2ClipImageProcessor(size=48)
SIZE = 20


def write_image(path: Path, seed: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def write_set(root: Path, seed: int = 0) -> Path:
    """Write two normal and two anomalous images with masks, in the layout of MVTec AD."""
    for number in range(2):
        write_image(root / "part" / "test" / "good" / f"{number}.png", seed + number)
        write_image(root / "part" / "test" / "cut" / f"{number}.png", seed + 10 + number)
        mask = np.zeros((SIZE, SIZE), dtype=np.uint8)
        mask[3:12, 4 : 14 + number] = 255
        target = root / "part" / "ground_truth" / "cut" / f"{number}_mask.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(target)
    return root


def evaluate(root: Path, output: Path, processor=PROCESSOR, model=MODEL, **options) -> dict:
    source = options.pop("source", None) or DataSource.parse(f"set={root}")
    (result,) = evaluate_sets(model, processor, [source], output, **{"sheets": 0, **options})
    return result


def predict(source, output: Path, processor=PROCESSOR, model=MODEL, **options) -> dict:
    return predict_to_folder(model, processor, source, output, **options)


def scores_of(output: Path) -> dict[str, float]:
    return {name: row["score"] for name, row in rows_of(output).items()}


# Changes of a dataset and of a folder of photos


def other_folder(root: Path) -> None:
    shutil.rmtree(root)
    write_set(root, seed=100)


def replace_photos(root: Path) -> None:
    for number in range(2):
        write_image(root / "part" / "test" / "good" / f"{number}.png", 200 + number)


def black_masks(root: Path) -> None:
    for mask in (root / "part" / "ground_truth" / "cut").iterdir():
        Image.new("L", (SIZE, SIZE), 0).save(mask)
    mask = Image.new("L", (SIZE, SIZE), 0)
    mask.paste(255, (0, 0, 2, 2))
    mask.save(root / "part" / "ground_truth" / "cut" / "0_mask.png")


def exchange_masks(root: Path) -> None:
    folder = root / "part" / "ground_truth" / "cut"
    (folder / "0_mask.png").rename(folder / "x")
    (folder / "1_mask.png").rename(folder / "0_mask.png")
    (folder / "x").rename(folder / "1_mask.png")


def same_size_and_time(root: Path) -> None:
    """Replace the contents of a file and restore its size and time."""
    file = root / "part" / "test" / "good" / "0.png"
    found, content = file.stat(), bytearray(file.read_bytes())
    write_image(file, 300)
    new = file.read_bytes()
    file.write_bytes((new + bytes(len(content)))[: max(len(content), len(new))])
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))


def add_image(root: Path) -> None:
    write_image(root / "part" / "test" / "good" / "9.png", 400)


def remove_image(root: Path) -> None:
    (root / "part" / "test" / "good" / "1.png").unlink()


def relabel(root: Path) -> None:
    (root / "part" / "test" / "cut" / "1.png").rename(root / "part" / "test" / "good" / "7.png")
    (root / "part" / "ground_truth" / "cut" / "1_mask.png").unlink()


CHANGES = {
    "another folder of the same name": (other_folder, r"4 changed"),
    "photos replaced in place": (replace_photos, r"2 changed"),
    "masks blackened": (black_masks, r"2 changed"),
    "masks exchanged": (exchange_masks, r"2 changed"),
    "photo replaced with the same size and time": (same_size_and_time, r"1 changed"),
    "photo added": (add_image, r"1 new"),
    "photo removed": (remove_image, r"1 removed"),
    "photo moved to another class": (relabel, r"1 new, 1 removed"),
}


def evaluated_after(change):
    """The result after a change is that of a new folder, and the folder contains it."""

    def act(folder: Path):
        root, output = write_set(folder / "set"), folder / "out"
        before = evaluate(root, output)
        change(root)
        return before, evaluate(root, output), evaluate(root, folder / "fresh"), output

    return act


def is_fresh(found) -> None:
    before, again, fresh, output = found
    assert_same_results(again, fresh)
    assert again["run"]["key"] != before["run"]["key"]
    assert json.loads((output / "results.json").read_text())["results"][0]["mean"] == again["mean"]
    assert (output / "set" / "scores.csv").read_text() == (output.parent / "fresh" / "set" / "scores.csv").read_text()


def predicted_after(change):
    def act(folder: Path):
        root, output = write_set(folder / "set"), folder / "out"
        predict(root / "part" / "test", output)
        change(root)
        found = predict(root / "part" / "test", output)
        predict(root / "part" / "test", folder / "fresh")
        return found, scores_of(output), scores_of(folder / "fresh")

    return act


def is_fresh_table(found) -> None:
    _, again, fresh = found
    assert list(again) == list(fresh)
    assert again == pytest.approx(fresh, abs=1e-6)


def with_settings(kind: str, **changed):
    """Run again with something else than the data changed."""

    def act(folder: Path):
        root, output = write_set(folder / "set"), folder / "out"
        call = evaluate if kind == "evaluate" else predict
        source = root if kind == "evaluate" else root / "part" / "test"
        call(source, output)
        before = {name: (output / name).read_bytes() for name in files_in(output)}
        try:
            return call(source, output, **changed)
        finally:
            assert {name: (output / name).read_bytes() for name in files_in(output)} == before

    return act


def changed_model(change):
    model = build_model()
    change(model)
    return model


def edit(name):
    def change(model):
        with torch.no_grad():
            model.get_parameter(name).view(-1)[3] += 0.1

    return changed_model(change)


OTHER_MODELS = {
    "vision tower": lambda: edit("clip.vision_model.encoder.layers.0.mlp.fc1.weight"),
    "text tower": lambda: edit("clip.text_model.encoder.layers.0.mlp.fc1.weight"),
    "projection": lambda: edit("clip.visual_projection.weight"),
    "adapters": lambda: edit("prompt_learner.normal_context"),
    "smoothing": lambda: changed_model(lambda model: setattr(model.config, "smoothing_sigma", 1.0)),
    "dtype": lambda: build_model().to(torch.bfloat16),
}
OTHER_PROCESSORS = {
    "mean": {"image_mean": [0.1, 0.2, 0.3]},
    "std": {"image_std": [0.5, 0.5, 0.5]},
    "resample": {"resample": 0},
    "rescale": {"rescale_factor": 1 / 200},
}


def datasets_of_the_same_length(folder: Path):
    """Two datasets without ids, one after the other."""
    found = []
    for seed in (0, 50):
        for number in range(2):
            write_image(folder / f"{seed}" / f"{number}.png", seed + number)
        files = [str(folder / f"{seed}" / f"{number}.png") for number in range(2)]
        dataset = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
        predict(dataset, folder / "out")
        predict(dataset, folder / f"fresh-{seed}")
        found.append((scores_of(folder / "out"), scores_of(folder / f"fresh-{seed}")))
    return found


def replaced_parquet(folder: Path):
    found = []
    for seed in (0, 50):
        images = []
        for number in range(2):
            write_image(folder / "image.png", seed + number)
            images.append({"bytes": (folder / "image.png").read_bytes(), "path": None})
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        dataset = datasets.Dataset.from_dict({"image": images, "label": [0, 1]}, features=features)
        dataset.to_parquet(folder / "table.parquet")
        predict(str(folder / "table.parquet"), folder / "out")
        predict(str(folder / "table.parquet"), folder / f"fresh-{seed}")
        found.append((scores_of(folder / "out"), scores_of(folder / f"fresh-{seed}")))
    return found


def all_fresh(found) -> None:
    for again, fresh in found:
        assert again == pytest.approx(fresh, abs=1e-6)
    assert found[0][0] != pytest.approx(found[1][0], abs=1e-6)


def decision_changed(folder: Path):
    """The threshold and the names of labels are not part of an evaluation."""
    root, output = write_set(folder / "set"), folder / "out"
    first = evaluate(root, output)

    def change(model):
        model.decision.image_threshold = 0.9
        model.config.id2label = {0: "ok", 1: "nok"}

    evaluate_model, subjects.evaluate_model = subjects.evaluate_model, None
    try:
        return first, evaluate(root, output, model=changed_model(change))
    finally:
        subjects.evaluate_model = evaluate_model


def damaged(file: str, content: bytes | None):
    """Damage a file of a finished evaluation."""

    def act(folder: Path):
        root, output = write_set(folder / "set"), folder / "out"
        first = evaluate(root, output, sheets=1, save_maps=True)
        expected = files_in(output)
        target = output / file
        target.unlink() if content is None else target.write_bytes(content)
        again = evaluate(root, output, sheets=1, save_maps=True)
        assert files_in(output) == expected
        return first, again

    return act


def same_result(found) -> None:
    assert_same_results(*found)


def damaged_prediction(file: str, content: bytes | None):
    def act(folder: Path):
        root, output = write_set(folder / "set"), folder / "out"
        predict(root, output, heatmaps=True)
        expected, scores = files_in(output), scores_of(output)
        target = output / file
        target.unlink() if content is None else target.write_bytes(content)
        predict(root, output, heatmaps=True)
        assert files_in(output) == expected
        return scores, scores_of(output)

    return act


def same_scores(found) -> None:
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def named(name: str):
    """A dataset with the name of a file of the run."""

    def act(folder: Path):
        root = write_set(folder / "set")
        result = evaluate(root, folder / "out", source=DataSource(name, str(root)))
        assert json.loads((folder / "out" / "results.json").read_text())["results"][0]["name"] == name
        return result, evaluate(root, folder / "fresh")

    return act


def second_run(kind: str):
    """Call again while the first run is not finished."""

    def act(folder: Path):
        root, output = write_set(folder / "set"), folder / "out"
        module, name = (subjects, "evaluate_model") if kind == "evaluate" else (prediction, "predict_chunks")
        call, original = (evaluate if kind == "evaluate" else predict), getattr(module, name)

        def inner(*args, **kwargs):
            setattr(module, name, original)
            return call(root, output)

        setattr(module, name, inner)
        try:
            return call(root, output)
        finally:
            setattr(module, name, original)

    return act


def foreign(kind: str, name: str):
    """A file of the user where the run wants to write."""

    def act(folder: Path):
        root, output = write_set(folder / "set"), folder / "out"
        call = evaluate if kind == "evaluate" else predict
        options = {"heatmaps": True} if kind == "predict" else {}
        call(write_set(folder / "other", 70), output)
        target = output / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"mine")
        try:
            return call(root, output, overwrite=True, **options)
        finally:
            assert target.read_bytes() == b"mine"

    return act


def not_a_run(kind: str, name: str, content: bytes):
    """A folder with something else, also with `overwrite`."""

    def act(folder: Path):
        output = folder / "out"
        output.mkdir()
        (output / name).write_bytes(content)
        try:
            return (evaluate if kind == "evaluate" else predict)(write_set(folder / "set"), output, overwrite=True)
        finally:
            assert files_in(output) == {name}
            assert (output / name).read_bytes() == content

    return act


def old_version(kind: str):
    """A folder without a record of the contents."""

    def act(folder: Path):
        root, output = write_set(folder / "set"), folder / "out"
        call = evaluate if kind == "evaluate" else predict
        call(root, output)
        for name in (".vip2clip.json", ".vip2clip-images.parquet"):
            (output / name).unlink(missing_ok=True)
        return call(root, output)

    return act


def other_versions(folder: Path):
    root, output = write_set(folder / "set"), folder / "out"
    evaluate(root, output)
    file = output / "set" / "result.json"
    found = json.loads(file.read_text())
    found["run"]["versions"]["torch"] = "0.0"
    file.write_text(json.dumps(found))
    evaluate(root, output)
    return json.loads((output / "results.json").read_text())


def keeps_versions(found) -> None:
    assert found["versions"]["torch"] == "0.0"
    assert found["results"][0]["run"]["versions"]["torch"] == "0.0"


CASES = [
    *(Case(f"evaluate: {name}", evaluated_after(change), is_fresh, says) for name, (change, says) in CHANGES.items()),
    *(
        Case(f"predict: {name}", predicted_after(change), is_fresh_table, None if "masks" in name else says)
        for name, (change, says) in CHANGES.items()
    ),
    *(
        Case(
            f"{kind}: another {name}",
            lambda folder, kind=kind, build=build: with_settings(kind, model=build())(folder),
            r"different settings: set: model_checksum \(was" if kind == "evaluate" else r"a different (model|dtype)",
        )
        for kind in ("evaluate", "predict")
        for name, build in OTHER_MODELS.items()
    ),
    *(
        Case(
            f"{kind}: another {name} of the image processor",
            with_settings(kind, processor=ViP2ClipImageProcessor(size=48, **changed)),
            r"image_processor" if kind == "evaluate" else r"a different image processor",
        )
        for kind in ("evaluate", "predict")
        for name, changed in OTHER_PROCESSORS.items()
    ),
    Case("evaluate: another fpr_limit", with_settings("evaluate", fpr_limit=0.1), r"fpr_limit \(was 0.3, now 0.1\)"),
    Case("evaluate: another convention", with_settings("evaluate", aupro_convention="release"), "aupro_convention"),
    Case("predict: another threshold", with_settings("predict", threshold=0.9), r"image_threshold setting \(was 0.5"),
    Case("predict: datasets of the same length", datasets_of_the_same_length, all_fresh),
    Case("predict: replaced Parquet file", replaced_parquet, all_fresh),
    Case("evaluate: another threshold and names of labels", decision_changed, same_result),
    *(
        Case(f"evaluate: {file} {how}", damaged(file, content), same_result)
        for file in ("set/result.json", "set/scores.csv", "set/maps/part.npy", "set/sheets/part.png", "results.json")
        for how, content in (("missing", None), ("empty", b""))
    ),
    Case("evaluate: truncated result", damaged("set/result.json", b'{"mean": {'), same_result, "damaged or missing"),
    Case("evaluate: truncated settings", damaged("settings.json", b"{"), same_result),
    *(
        Case(f"predict: {file} {how}", damaged_prediction(file, content), same_scores)
        for file in ("predictions.parquet", ".vip2clip-images.parquet")
        for how, content in (("missing", None), ("empty", b""), ("truncated", b"PAR1"))
    ),
    Case(
        "predict: heatmap missing", damaged_prediction("heatmaps/part/test/good/0.png.png", None), same_scores,
        "Missing heatmaps or maps in .*: 1",
    ),
    *(Case(f"a dataset called {name}", named(name), same_result) for name in (
        "lock", "results.json", "settings.json", "tables.md", "tables.tex", "results.csv", ".progress", ".run", "..",
        "a/b", "TABLES.MD", ".vip2clip.json",
    )),
    Case("evaluate: two runs into one folder", second_run("evaluate"), "Another program is evaluating into"),
    Case("predict: two runs into one folder", second_run("predict"), "Another program is predicting into"),
    Case("predict: heatmap of the user", foreign("predict", "heatmaps/part/test/good/0.png.png"), "not written by"),
    *(
        Case(f"{kind}: a folder with {name}", not_a_run(kind, name, content), "is not empty and does not contain")
        for kind in ("evaluate", "predict")
        for name, content in (
            ("photo.png", b"photo"), ("settings.json", b"{"), ("settings.json ", b"[]"), (".vip2clip.json", b"{}"),
            ("settings.json.bak", b'{"kind": "prediction"}'),
        )
    ),
    Case("evaluate: folder of an earlier version", old_version("evaluate"), "of an earlier version, which did not"),
    Case("predict: folder of an earlier version", old_version("predict"), "of an earlier version, which did not"),
    Case("evaluate: results of other versions", other_versions, keeps_versions, "were computed with .*torch 0.0"),
]  # fmt: skip


@parametrize(CASES)
def test_run_folders(case, tmp_path, caplog):
    run(case, tmp_path, caplog)


def test_a_growing_folder(tmp_path, monkeypatch, caplog):
    """Only new and changed photos are predicted, also of an unfinished prediction. Removed photos are dropped."""
    photos, output = tmp_path / "photos", tmp_path / "out"
    for number in range(5):
        write_image(photos / f"{number}.png", number)
    predict(photos, output, heatmaps=True, chunk_size=2)
    read = []
    load = batches.load_with_tiles

    def counted(image, *args):
        read.append(Path(image["path"]).name)
        return load(image, *args)

    monkeypatch.setattr(batches, "load_with_tiles", counted)
    write_image(photos / "1.png", 60)
    write_image(photos / "00.png", 61)
    (photos / "3.png").unlink()
    found = predict(photos, output, heatmaps=True, chunk_size=2)
    assert sorted(read) == ["00.png", "1.png"]
    assert (found["num_images"], found["num_done_before"]) == (5, 3)
    assert "1 changed, 1 new, 1 removed" in caplog.text
    assert "The rows of 3 of 5 images are kept." in caplog.text
    predict(photos, tmp_path / "fresh", heatmaps=True, chunk_size=2)
    assert scores_of(output) == pytest.approx(scores_of(tmp_path / "fresh"), abs=1e-6)
    assert files_in(output) == files_in(tmp_path / "fresh")
    for name in files_in(output):
        if name.endswith(".png"):
            assert (output / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
    # A copy of the folder has other time stamps but the same contents.
    read.clear()
    shutil.copytree(photos, tmp_path / "copy")
    shutil.rmtree(photos)
    shutil.copytree(tmp_path / "copy", photos)
    assert predict(photos, output, heatmaps=True, chunk_size=2)["num_done_before"] == 5
    assert read == []


def test_photos_change_during_a_prediction(tmp_path, monkeypatch):
    """An interrupted prediction is resumed with the photos as they are now."""
    photos, output = tmp_path / "photos", tmp_path / "out"
    for number in range(8):
        write_image(photos / f"{number}.png", number)
    forward, calls = MODEL.forward, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MODEL, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            predict(photos, output, heatmaps=True, chunk_size=2, batch_size=2)
    write_image(photos / "0.png", 70)
    write_image(photos / "a.png", 71)
    (photos / "2.png").unlink()
    found = predict(photos, output, heatmaps=True, chunk_size=2, batch_size=2)
    assert found["num_done_before"] == 4
    predict(photos, tmp_path / "fresh", heatmaps=True, chunk_size=2, batch_size=2)
    assert scores_of(output) == pytest.approx(scores_of(tmp_path / "fresh"), abs=1e-6)
    assert files_in(output) == files_in(tmp_path / "fresh")


def test_damaged_progress_is_evaluated_again(tmp_path, caplog):
    """Empty and truncated parts ended in BadZipFile and EOFError."""
    root, output = write_set(tmp_path / "set"), tmp_path / "out"
    first = evaluate(root, tmp_path / "fresh")
    forward = MODEL.forward
    for number, content in enumerate((b"", b"PK\x03\x04", None)):
        calls = []

        def interrupted(*args, calls=calls, **kwargs):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return forward(*args, **kwargs)

        MODEL.forward = interrupted
        try:
            with pytest.raises(KeyboardInterrupt):
                evaluate(root, output / str(number), batch_size=1)
        finally:
            del MODEL.forward
        (part,) = (output / str(number) / ".progress" / "set").glob("part-*.npz")
        part.write_bytes(part.read_bytes()[:-40] if content is None else content)
        assert_same_results(evaluate(root, output / str(number), batch_size=1), first, 1e-6)
        assert "is damaged" in caplog.text
        caplog.clear()


def test_overwriting_keeps_old_results_until_the_end(tmp_path, monkeypatch):
    """Old results were deleted first. An interruption left nothing."""
    root, other, output = write_set(tmp_path / "set"), write_set(tmp_path / "other", 40), tmp_path / "out"
    evaluate(root, output, sheets=1, save_maps=True)
    before = {name: (output / name).read_bytes() for name in files_in(output)}
    monkeypatch.setattr(runner, "write_sheets", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        evaluate(other, output, sheets=1, save_maps=True, overwrite=True, fpr_limit=0.2)
    found = {name: (output / name).read_bytes() for name in files_in(output) if not name.startswith(".progress")}
    assert found == before
    monkeypatch.undo()
    again = evaluate(root, output, sheets=1, save_maps=True, overwrite=True)
    assert_same_results(again, evaluate(root, tmp_path / "fresh"))
    assert not (output / ".progress").exists()


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_bytes_changes_the_result(data, tmp_path_factory):
    """If a change of any file changes the result of a new folder, it changes the result of an existing folder."""
    folder = tmp_path_factory.mktemp("change")
    root, output = write_set(folder / "set"), folder / "out"
    evaluate(root, output)
    predict(root / "part" / "test", folder / "table")
    files = sorted(path for path in root.rglob("*.png"))
    file = data.draw(st.sampled_from(files))
    found = file.stat()
    kind = data.draw(st.sampled_from(["byte", "pixels", "swap", "truncate"]))
    if kind == "byte":
        content = bytearray(file.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        file.write_bytes(content)
    elif kind == "pixels":
        with Image.open(file) as image:
            pixels = np.array(image)
        row, column = data.draw(st.integers(0, SIZE - 1)), data.draw(st.integers(0, SIZE - 1))
        pixels[row, column] = 255 - pixels[row, column]
        Image.fromarray(pixels).save(file)
    elif kind == "swap":
        other = data.draw(st.sampled_from([path for path in files if path != file]))
        content = file.read_bytes()
        shutil.copy2(other, file)
        other.write_bytes(content)
    else:
        file.write_bytes(file.read_bytes()[: data.draw(st.integers(0, found.st_size - 1))])
    if data.draw(st.booleans()):
        os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))

    def outcome(call, *arguments):
        try:
            return call(*arguments)
        except (OSError, ValueError) as error:
            return type(error)

    again, fresh = outcome(evaluate, root, output), outcome(evaluate, root, folder / "fresh")
    if isinstance(fresh, type):
        assert again is fresh
    else:
        assert_same_results(again, fresh)
    predict(root / "part" / "test", folder / "table")
    predict(root / "part" / "test", folder / "fresh-table")
    rows = [rows_of(folder / name) for name in ("table", "fresh-table")]
    for name, row in rows[1].items():
        assert rows[0][name]["score"] == pytest.approx(row["score"], abs=1e-6)
        assert (rows[0][name]["error"] is None) == (row["error"] is None)


def test_unchanged_files_are_not_read(tmp_path, monkeypatch):
    """The second call compares time stamps, if they are older than two seconds."""
    photos = tmp_path / "photos"
    for number in range(3):
        write_image(photos / f"{number}.png", number)
    time.sleep(2.1)
    predict(photos, tmp_path / "out")
    monkeypatch.setattr(file_state, "read_file", None)
    monkeypatch.setattr(contents, "read_file", None)
    assert predict(photos, tmp_path / "out")["num_done_before"] == 3


# Found in a review of the run folders


def interrupt(call, *arguments, at: int = 3, **options):
    """Call, and interrupt the model at a batch."""
    forward, calls = MODEL.forward, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    MODEL.forward = interrupted
    try:
        with pytest.raises(KeyboardInterrupt):
            call(*arguments, **options)
    finally:
        del MODEL.forward


@pytest.mark.parametrize("before", [False, True])
def test_maps_of_a_resumed_evaluation(tmp_path, before):
    """Images evaluated before the interruption had empty maps."""
    root, output = write_set(tmp_path / "set"), tmp_path / "out"
    interrupt(evaluate, root, output, batch_size=1, save_maps=before)
    if before:  # resumed without maps, and interrupted again
        interrupt(evaluate, root, output, batch_size=1, at=2)
    evaluate(root, output, batch_size=1, save_maps=True)
    evaluate(root, tmp_path / "fresh", batch_size=1, save_maps=True)
    maps = [np.load(folder / "set" / "maps" / "part.npy") for folder in (output, tmp_path / "fresh")]
    np.testing.assert_array_equal(*maps)
    assert maps[0].min() > 0


def test_maps_after_an_image_changed_its_category(tmp_path):
    root, output = write_set(tmp_path / "set"), tmp_path / "out"
    write_image(root / "zz" / "test" / "good" / "0.png", 90)
    write_image(root / "zz" / "test" / "good" / "1.png", 91)
    interrupt(evaluate, root, output, batch_size=1, save_maps=True)
    (root / "zz" / "test" / "good" / "1.png").rename(root / "part" / "test" / "good" / "zz.png")
    evaluate(root, output, save_maps=True)
    evaluate(root, tmp_path / "fresh", save_maps=True)
    for name in ("part", "zz"):
        maps = [np.load(folder / "set" / "maps" / f"{name}.npy") for folder in (output, tmp_path / "fresh")]
        np.testing.assert_array_equal(*maps)


def test_sheets_of_a_resumed_evaluation(tmp_path, monkeypatch):
    root, output = write_set(tmp_path / "set"), tmp_path / "out"
    monkeypatch.setattr(runner.EvaluationFolder, "commit", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        evaluate(root, output, sheets=1)
    monkeypatch.undo()
    evaluate(root, output, sheets=0)
    assert not list(output.rglob("*.png"))


def test_an_unfinished_evaluation_does_not_block_other_options(tmp_path, caplog):
    root, output = write_set(tmp_path / "set"), tmp_path / "out"
    interrupt(evaluate, root, output, batch_size=1)
    processor = ViP2ClipImageProcessor(size=48, image_mean=[0.1, 0.2, 0.3])
    result = evaluate(root, output, processor=processor)
    assert "unfinished evaluation is deleted: image_processor.image_mean (was [0.48" in caplog.text
    assert_same_results(
        result, evaluate(root, tmp_path / "x", processor=ViP2ClipImageProcessor(size=48, image_mean=[0.1, 0.2, 0.3]))
    )


def test_images_at_file_urls(tmp_path):
    """They counted as unreadable, so a replaced image was not noticed."""
    found = []
    for seed in (0, 5):
        write_image(tmp_path / "1.png", seed)
        table = {"image": [{"bytes": None, "path": (tmp_path / "1.png").as_uri()}]}
        dataset = datasets.Dataset.from_dict(table, features=datasets.Features({"image": datasets.Image()}))
        predict(dataset, tmp_path / "out")
        found += scores_of(tmp_path / "out").values()
    assert found[0] != found[1]


@pytest.mark.parametrize("content", [None, b"", b"ARROW1"])
@pytest.mark.parametrize("file", ["images.arrow", "part-000000000.parquet", "settings.json"])
def test_damaged_progress_of_a_prediction(tmp_path, file, content):
    """It ended in errors of Arrow, also with `overwrite`."""
    root, output = write_set(tmp_path / "set"), tmp_path / "out"
    interrupt(predict, root, output, batch_size=1, chunk_size=1)
    damaged = output / ".progress" / file
    damaged.unlink() if content is None else damaged.write_bytes(content)
    predict(root, output, batch_size=1, chunk_size=1)
    predict(root, tmp_path / "fresh", batch_size=1, chunk_size=1)
    assert scores_of(output) == scores_of(tmp_path / "fresh")


def test_heatmaps_of_unreadable_images_are_files_of_the_user(tmp_path):
    photos, output = tmp_path / "photos", tmp_path / "out"
    write_image(photos / "0.png", 0)
    (photos / "broken.png").write_bytes(b"no image")
    predict(photos, output, heatmaps=True)
    (output / "heatmaps" / "broken.png.png").write_bytes(b"mine")
    (photos / "broken.png").unlink()
    predict(photos, output, heatmaps=True)
    assert (output / "heatmaps" / "broken.png.png").read_bytes() == b"mine"


def test_images_that_failed_are_tried_again(tmp_path, monkeypatch):
    """The limit of pixels was raised, as the message advises, but the error stayed."""
    photos, output = tmp_path / "photos", tmp_path / "out"
    write_image(photos / "0.png", 0)
    write_image(photos / "1.png", 1)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        assert predict(photos, output)["num_unreadable"] == 2
        assert predict(photos, output)["num_done_before"] == 2
    assert predict(photos, output)["num_unreadable"] == 0


def test_images_with_the_same_id(tmp_path, caplog):
    write_image(tmp_path / "0.png", 0)
    write_image(tmp_path / "1.png", 1)
    files = [str(tmp_path / "0.png"), str(tmp_path / "1.png")]
    dataset = datasets.Dataset.from_dict({"image": files, "image_id": ["a", "a"]})
    dataset = dataset.cast_column("image", datasets.Image())
    predict(dataset, tmp_path / "out")
    assert predict(dataset, tmp_path / "out")["num_done_before"] == 2
    assert "since the last prediction" not in caplog.text


@pytest.mark.parametrize("options", [{}, {"heatmaps": True}])
def test_lost_settings_of_a_prediction(tmp_path, options):
    """Other options replaced the table without a word, or the heatmaps counted as files of the user."""
    root, output = write_set(tmp_path / "set"), tmp_path / "out"
    predict(root, output, **options)
    (output / "settings.json").unlink()
    with pytest.raises(OSError, match="a different image_threshold setting"):
        predict(root, output, threshold=0.9, **options)
    predict(root, output, **options)
    assert (output / "settings.json").exists()
    predict(root, output, threshold=0.9, overwrite=True, **options)


@pytest.mark.parametrize(
    "content", [{"data": {}}, {"data": 5}, {"data": [["a"]]}, {"data": {"x": 1}, "model": "mine"}]
)
def test_settings_of_another_program(tmp_path, content):
    root, output = write_set(tmp_path / "set"), tmp_path / "out"
    output.mkdir()
    (output / "settings.json").write_text(json.dumps(content))
    (output / "results.json").write_text("mine")
    with pytest.raises(OSError, match="does not contain an evaluation"):
        evaluate(root, output, overwrite=True)
    assert (output / "results.json").read_text() == "mine"


def test_another_program_finishes_between_check_and_lock(tmp_path, monkeypatch):
    """The manifest was read before the lock, so it lost the files of the other program."""
    root, output = write_set(tmp_path / "set"), tmp_path / "out"
    names = prediction.as_images(root, output).names
    first = []

    def slow(images):
        if not first:
            first.append(1)
            predict(root, output)
        return names()

    monkeypatch.setattr("vip2clip_hf.inference.images.FolderImages.names", slow)
    predict(root, output)
    monkeypatch.undo()
    write_image(root / "part" / "test" / "good" / "new.png", 9)
    assert predict(root, output)["num_done_before"] > 0


def test_names_of_datasets_do_not_depend_on_others(tmp_path):
    one, two = write_set(tmp_path / "1"), write_set(tmp_path / "2", 30)
    sources = [DataSource("a b", str(one)), DataSource("a_b", str(two))]
    evaluate_sets(MODEL, PROCESSOR, sources, tmp_path / "out", sheets=0)
    before = {name: (tmp_path / "out" / name).read_bytes() for name in files_in(tmp_path / "out")}
    evaluate_sets(MODEL, PROCESSOR, sources[1:], tmp_path / "out", sheets=0)
    assert all(
        (tmp_path / "out" / name).read_bytes() == before[name] for name in before if name.endswith("result.json")
    )


def test_an_interrupt_in_the_preparation_releases_the_lock(tmp_path, monkeypatch):
    root = write_set(tmp_path / "set")
    for call, name in ((evaluate, "evaluation.output.EvaluationFolder._plan"), (predict, "inference.folder.match")):
        output = tmp_path / call.__name__
        call(root, output)
        with monkeypatch.context() as patch:
            patch.setattr(f"vip2clip_hf.{name}", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                call(root, output)
        call(root, output)
