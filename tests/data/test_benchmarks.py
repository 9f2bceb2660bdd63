import re
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from helpers.benchmark_trees import BUILDERS, Writer, dagm_official, ksdd_official, mvtec_official, visa_official
from helpers.tiny import ROOT
from vip2clip_hf.data.benchmarks.registry import BENCHMARKS
from vip2clip_hf.data.collator import ViP2ClipCollator
from vip2clip_hf.data.kolektor_thirds import write_kolektor_thirds
from vip2clip_hf.data.loading import index_benchmark, load_benchmark


COLUMNS = ["image", "mask", "label", "category", "defect", "image_id"]


def name_of(builder) -> str:
    return builder.__name__.split("_")[0]


@pytest.fixture(params=BUILDERS, ids=lambda builder: builder.__name__)
def tree(request, tmp_path):
    return name_of(request.param), request.param(tmp_path / "data")


def test_every_benchmark_has_several_trees():
    forms = Counter(map(name_of, BUILDERS))
    assert set(forms) == set(BENCHMARKS)
    assert min(forms.values()) >= 2


def test_loads(tree):
    name, tree = tree
    index = index_benchmark(name, tree.root)
    assert index.layout.name == tree.layout
    dataset = load_benchmark(name, tree.root)
    assert dataset.column_names == COLUMNS
    assert dataset.features["label"].names == ["normal", "anomalous"]
    found = {c: [0, 0] for c in dataset["category"]}
    masks = empty = 0
    for row in dataset:
        number = round(np.asarray(row["image"].convert("L")).mean() / 4)
        found[row["category"]][row["label"]] += 1
        assert (row["defect"] == "") or row["label"] == 1
        if row["mask"] is None:
            continue
        assert row["label"] == 1
        masks += 1
        marked = np.flatnonzero(np.asarray(row["mask"].convert("L")) > BENCHMARKS[name].mask_threshold)
        if marked.size:
            assert marked.tolist() == [number], row["image_id"]  # the mask belongs to this image
        else:
            empty += 1
    assert list(found) == [c for c in BENCHMARKS[name].categories if c in tree.counts]  # in the order of the benchmark
    assert {c: tuple(n) for c, n in found.items()} == tree.counts
    assert (masks, empty) == (tree.masks, tree.empty_masks)
    assert len(set(dataset["image_id"])) == len(dataset)


def test_train_split(tree):
    name, tree = tree
    if tree.train:
        train = load_benchmark(name, tree.root, "train")
        assert len(train) == tree.train
        expected = {0, 1} if name == "dagm" else {1} if name == "isic" else {0}
        assert set(train["label"]) <= expected
        assert not set(train["image_id"]) & set(load_benchmark(name, tree.root)["image_id"])
    else:
        with pytest.raises(ValueError, match=r"has no split 'train'; expected test"):
            load_benchmark(name, tree.root, "train")


def test_report(tree):
    name, tree = tree
    index = index_benchmark(name, tree.root)
    report = index.report
    assert {c: (p.normal, p.anomalous) for c, p in report.categories.items()} == tree.counts
    assert report.total.masks == tree.masks
    assert {reason: len(paths) for reason, paths in report.ignored.items()} == tree.ignored
    warnings = [kind for kind in report.warnings if kind != "categories without images"]
    assert len(warnings) == len(tree.warnings), warnings
    assert all(any(kind.startswith(start) for kind in warnings) for start in tree.warnings)
    text = str(report)
    benchmark = BENCHMARKS[name]
    for part in (benchmark.title, benchmark.evaluated, benchmark.citation, benchmark.source, tree.layout):
        assert part in text
    assert (benchmark.licence or "not established") in text
    assert f"Counts differ from the published counts (source: {benchmark.counts_source})" in text  # the trees are tiny
    assert report.to_dict()["benchmark"]["mask_threshold"] == benchmark.mask_threshold


def test_one_more_enclosing_folder(tree, tmp_path):
    """The data can be in the folder itself or in a folder inside it, but not two levels down."""
    name, tree = tree
    expected = len(index_benchmark(name, tree.root).rows)
    directly = index_benchmark(name, tree.root).root == str(tree.root)
    outer = tmp_path / "outer"
    outer.mkdir()
    shutil.move(tree.root, outer / tree.root.name)
    if (tree.root.parent / "labels.csv").exists():
        shutil.move(tree.root.parent / "labels.csv", outer / "labels.csv")
    if directly:
        assert len(index_benchmark(name, outer).rows) == expected


def test_no_image_is_decoded(tree, monkeypatch):
    name, tree = tree

    def refuse(*arguments, **options):
        raise AssertionError("an image was opened")

    if tree.layout != "kolektor":
        monkeypatch.setattr(Image, "open", refuse)
    index = index_benchmark(name, tree.root)
    assert index.report
    index.to_dataset()


def test_table_is_complete():
    industrial = ["mvtec", "visa", "mpdd", "btad", "ksdd", "dagm", "dtd"]
    medical = ["headct", "brainmri", "br35h", "isic", "colondb", "clinicdb", "endo", "kvasir"]
    assert [benchmark.name for benchmark in BENCHMARKS.values() if benchmark.domain == "industrial"] == industrial
    assert list(BENCHMARKS) == industrial + medical
    for benchmark in BENCHMARKS.values():
        assert benchmark.mask_threshold == (127 if benchmark.name in ("endo", "kvasir") else 0)
        assert benchmark.has_masks == (benchmark.name not in ("headct", "brainmri", "br35h"))
        assert benchmark.citation
        assert benchmark.source.startswith("http")
        if len(benchmark.counts) == len(benchmark.categories):
            assert sum(n for n, _ in benchmark.counts.values()) == benchmark.normal
            assert sum(a for _, a in benchmark.counts.values()) == benchmark.anomalous
    assert [len(BENCHMARKS[n].categories) for n in ("mvtec", "visa", "mpdd", "btad", "dagm", "dtd")] == [
        15, 12, 6, 3, 10, 12,
    ]  # fmt: skip
    assert sum(BENCHMARKS["mvtec"].train_counts.values()) == 3629
    assert sum(BENCHMARKS["visa"].train_counts.values()) == 9621 - 962


def test_published_counts(tmp_path):
    """No differences for a complete benchmark. A missing image is reported for its category and in total."""
    writer = Writer(tmp_path)
    writer.image("image.png")
    content = (tmp_path / "image.png").read_bytes()
    for category, (normal, anomalous) in BENCHMARKS["mpdd"].counts.items():
        for kind, count in (("good", normal), ("bad", anomalous)):
            folder = tmp_path / "MPDD" / category / "test" / kind
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number:03d}.png").write_bytes(content)
    report = index_benchmark("mpdd", tmp_path / "MPDD").report
    assert report.differences == []
    assert "differ" not in str(report)
    (tmp_path / "MPDD" / "tubes" / "test" / "bad" / "000.png").unlink()
    assert index_benchmark("mpdd", tmp_path / "MPDD").report.differences == [
        "tubes: 32 normal, 68 anomalous (published: 32 normal, 69 anomalous)",
        "total: 176 normal, 281 anomalous (published: 176 normal, 282 anomalous)",
    ]


def test_categories(tmp_path):
    tree = mvtec_official(tmp_path)
    dataset = load_benchmark("mvtec", tree.root, categories=["zipper"])
    assert set(dataset["category"]) == {"zipper"}
    with pytest.raises(ValueError, match=r"has no category wood, zip; expected some of bottle, zipper\."):
        load_benchmark("mvtec", tree.root, categories=["wood", "zip"])
    with pytest.raises(ValueError, match=r"is the string 'zipper'; expected a list such as \['zipper'\]"):
        load_benchmark("mvtec", tree.root, categories="zipper")
    index = index_benchmark("mvtec", tree.root)
    assert index.warnings["categories without images"] == [
        c for c in BENCHMARKS["mvtec"].categories if c not in ("bottle", "zipper")
    ]
    assert "categories without images" not in index_benchmark("mvtec", tree.root, categories=["zipper"]).warnings
    with pytest.raises(ValueError, match=r"categories is empty; expected some of bottle, zipper\."):
        load_benchmark("mvtec", tree.root, categories=[])


def test_dataset_info(tmp_path):
    info = load_benchmark("visa", visa_official(tmp_path).root).info
    assert info.license.startswith("CC BY 4.0")
    assert "ECCV 2022" in info.citation
    assert info.homepage == BENCHMARKS["visa"].source


def test_several_benchmarks_in_one_folder(tmp_path):
    """A benchmark among several is found by its categories or by the name of its folder."""
    for builder in BUILDERS:
        if builder.__name__ in ("mvtec_official", "visa_official", "dagm_official", "dtd_official"):
            builder(tmp_path / builder.__name__)
    writer = Writer(tmp_path)
    for folder in ("Kvasir", "CVC-ClinicDB"):
        writer.image(f"{folder}/images/1.png")
        writer.mask(f"{folder}/masks/1.png")
    for name in ("mvtec", "visa", "dagm", "dtd", "kvasir", "clinicdb"):
        assert name_of_root(index_benchmark(name, tmp_path)) == name
    with pytest.raises(
        ValueError, match=r"contains several datasets: CVC-ClinicDB, Kvasir; expected the folder of one\."
    ):
        load_benchmark("endo", tmp_path)


def name_of_root(index) -> str:
    name = index.root.replace("\\", "/").rsplit("/", 1)[-1].split("_")[0].lower()
    return name.removeprefix("cvc-")


def test_mask_threshold_reaches_the_processor(tmp_path, image_processor):
    writer = Writer(tmp_path)
    writer.image("images/cju0.jpg")
    noisy = np.full((8, 8), 3, dtype=np.uint8)
    noisy[:4] = 250
    (tmp_path / "masks").mkdir()
    Image.fromarray(noisy).save(tmp_path / "masks" / "cju0.png")
    rows = list(load_benchmark("kvasir", tmp_path))
    collator = ViP2ClipCollator(image_processor, mask_threshold=BENCHMARKS["kvasir"].mask_threshold)
    assert collator(rows)["mask_labels"].float().mean() == 0.5
    assert ViP2ClipCollator(image_processor, mask_threshold=0)(rows)["mask_labels"].float().mean() == 1


def test_collator_of_a_benchmark_without_masks(tmp_path, image_processor):
    for number in range(2):
        Writer(tmp_path).image(f"yes/y{number}.jpg")
        Writer(tmp_path).image(f"no/no{number}.jpg")
    dataset = load_benchmark("br35h", tmp_path)
    batch = ViP2ClipCollator.for_dataset(image_processor, dataset)(list(dataset))
    assert set(batch) == {"pixel_values", "labels"}  # the model would learn empty masks


# Bad input


def test_unknown_names(tmp_path):
    with pytest.raises(ValueError, match=r"Unknown benchmark 'mvtecad'; expected one of mvtec, visa, .*, kvasir\."):
        load_benchmark("mvtecad", tmp_path)
    with pytest.raises(ValueError, match="Unknown benchmark None"):
        load_benchmark(None, tmp_path)
    with pytest.raises(ValueError, match=r"layout is 'flat'; expected one of meta, tree for MVTec AD\."):
        load_benchmark("mvtec", tmp_path, layout="flat")
    assert load_benchmark("MVTec", mvtec_official(tmp_path).root)


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_wrong_roots(name, tmp_path):
    with pytest.raises(OSError, match="not found; expected the folder of a dataset"):
        load_benchmark(name, tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="is a file; expected the folder of a dataset"):
        load_benchmark(name, tmp_path / "file")
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "notes.txt").write_text("x")
    with pytest.raises(
        ValueError, match=r"does not have the layout of .*expected .*Found: holiday/ \(1 x .txt\), 1 x file"
    ) as raised:
        load_benchmark(name, tmp_path)
    title, categories = BENCHMARKS[name].title, BENCHMARKS[name].categories
    assert (f"Categories of {title}: {', '.join(categories)}." in str(raised.value)) == (len(categories) > 1)


def test_strict(tmp_path):
    tree = mvtec_official(tmp_path)
    (tree.root / "bottle" / "ground_truth" / "broken_large" / "000_mask.png").unlink()
    dataset = load_benchmark("mvtec", tree.root, categories=["bottle"])
    rows = {row["image_id"]: row["mask"] is None for row in dataset if row["label"]}
    assert rows == {
        "bottle/test/broken_large/000.png": True,  # kept, without a mask
        "bottle/test/broken_large/001.png": False,  # the other pairs are not shifted
        "bottle/test/contamination/000.png": False,
    }
    with pytest.raises(ValueError, match=r"anomalous images without a mask.* \(1\): bottle/test/broken_large/000.png"):
        load_benchmark("mvtec", tree.root, categories=["bottle"], strict=True)
    assert load_benchmark("mvtec", tree.root, categories=["zipper"], strict=True)


def test_strict_for_a_benchmark_without_masks(tmp_path):
    for builder in BUILDERS:
        if builder.__name__ == "br35h_official":
            load_benchmark("br35h", builder(tmp_path).root, strict=True)


def test_warnings_are_logged_once_with_a_count(tmp_path, caplog, monkeypatch):
    import logging

    monkeypatch.setattr(logging.getLogger("vip2clip_hf"), "propagate", True)
    tree = mvtec_official(tmp_path)
    for mask in (tree.root / "bottle" / "ground_truth").rglob("*.png"):
        mask.unlink()
    with caplog.at_level("WARNING"):
        load_benchmark("mvtec", tree.root, categories=["bottle"])
    assert [len(re.findall(r"anomalous images without a mask.* \(3\): ", r.getMessage())) for r in caplog.records] == [
        1
    ]


def test_visa_without_its_split(tmp_path):
    tree = visa_official(tmp_path)
    (tree.root / "split_csv" / "1cls.csv").unlink()
    with pytest.raises(ValueError, match=r"not split_csv/1cls.csv, which defines the split; expected this file"):
        load_benchmark("visa", tree.root)


def test_visa_with_a_damaged_split(tmp_path):
    tree = visa_official(tmp_path)
    path = tree.root / "split_csv" / "1cls.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has the columns a, b; expected image, label, mask, object, split"):
        load_benchmark("visa", tree.root)
    path.write_text(
        "object,split,label,image,mask\n"
        "candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png\n"
        "candle,test,anomaly,candle/Data/Images/Anomaly/777.JPG,\n"
        "candle,test,anomaly,../../secret.JPG,\n"
        "candle,later,anomaly,candle/Data/Images/Anomaly/001.JPG,\n"
    )
    index = index_benchmark("visa", tree.root)
    assert [row.image for row in index.rows] == ["candle/Data/Images/Anomaly/000.JPG"]
    kinds = [kind for kind in index.warnings if kind != "categories without images"]
    assert sorted(kinds) == [
        "invalid lines in 1cls.csv, skipped",
        "listed images that do not exist, left out",
        "paths that point outside the dataset, left out",
    ]


def test_dagm_labels_that_disagree(tmp_path):
    tree = dagm_official(tmp_path)
    label = tree.root / "Class1" / "Test" / "Label"
    (label / "0001_label.PNG").unlink()  # listed as defective, its mask is missing
    lines = (label / "Labels.txt").read_text().replace("0003\t1\t", "0003\t0\t")  # has a mask, listed as normal
    (label / "Labels.txt").write_text(lines + "nonsense\n")
    index = index_benchmark("dagm", tree.root, categories=["Class1"])
    assert [(row.label, row.mask is None) for row in index.rows] == [(1, True), (0, True), (1, False), (0, True)]
    disagree = "images where mask and Labels.txt disagree, treated as anomalous"
    assert index.warnings[disagree] == ["Class1/Test/0001.PNG", "Class1/Test/0003.PNG"]
    assert len(index.warnings["invalid lines in Labels.txt, skipped"]) == 1
    (label / "Labels.txt").unlink()  # labels from the masks alone
    index = index_benchmark("dagm", tree.root, categories=["Class1"])
    assert [row.label for row in index.rows] == [0, 0, 1, 0]


def test_headct_labels(tmp_path):
    writer = Writer(tmp_path)
    for number in (0, 1, 150):
        writer.image(f"head_ct/{number:03d}.png")
    writer.text("labels.csv", "id, hemorrhage\n0,1\n150,0\nx,1\n")
    index = index_benchmark("headct", tmp_path)
    assert [(row.image, row.label) for row in index.rows] == [("head_ct/000.png", 1), ("head_ct/150.png", 0)]
    assert index.warnings["images missing from labels.csv, left out"] == ["head_ct/001.png"]
    assert index.warnings["invalid lines in labels.csv, skipped"] == ["x,1"]
    writer.text("labels.csv", "name, label\n0,1\n")
    with pytest.raises(ValueError, match="does not have the layout of HeadCT"):
        load_benchmark("headct", tmp_path)


def test_a_broken_label_bitmap(tmp_path):
    tree = ksdd_official(tmp_path)
    (tree.root / "kos01" / "Part1_label.bmp").write_bytes(b"BM broken")
    index = index_benchmark("ksdd", tree.root)
    assert len(index.rows) == 5
    assert "kos01/Part1_label.bmp" in index.warnings["unreadable label bitmaps, images left out"][0]


def test_two_candidates_for_a_benchmark_of_one_category(tmp_path):
    writer = Writer(tmp_path)
    for folder in ("first", "second"):
        writer.image(f"{folder}/test/good/1.png")
    with pytest.raises(ValueError, match=r"contains several datasets: first, second; expected the folder of one\."):
        load_benchmark("headct", tmp_path)
    writer.image("headct/test/good/1.png")
    index = index_benchmark("headct", tmp_path)
    assert [row.image for row in index.rows] == ["headct/test/good/1.png"]
    assert len(index.report.ignored["files outside the categories of the benchmark"]) == 2


# KolektorSDD in thirds


def test_kolektor_thirds(tmp_path):
    root = tmp_path / "official"
    for number in range(8):
        folder = root / f"kos{number:02d}"
        folder.mkdir(parents=True)
        pixels = np.arange(10 * 6, dtype=np.uint8).reshape(10, 6) + number
        Image.fromarray(pixels).save(folder / "Part0.jpg", quality=100)
        mask = np.zeros((10, 6), dtype=np.uint8)
        if number == 3:
            mask[2:4, 1] = 255  # crosses the first cut
        Image.fromarray(mask).save(folder / "Part0_label.bmp")
    output = write_kolektor_thirds(root, tmp_path / "thirds")
    index = index_benchmark("ksdd", output)
    assert index.layout.name == "tree"
    report = index.report
    assert (report.total.normal, report.total.anomalous, report.total.masks) == (round(22 / 4), 2, 2)
    assert report.splits == {"train": 22 - round(22 / 4), "test": round(22 / 4) + 2}
    rows = {row["image_id"].rsplit("/", 1)[-1]: row for row in index.to_dataset() if row["label"]}
    assert [row["image"].size for row in rows.values()] == [(6, 3), (6, 3)]
    assert np.asarray(rows["kos03_Part0_0.png"]["mask"]).nonzero()[0].tolist() == [2]
    assert np.asarray(rows["kos03_Part0_1.png"]["mask"]).nonzero()[0].tolist() == [0]
    heights = [row["image"].size[1] for row in load_benchmark("ksdd", output, "train")]
    assert set(heights) <= {3, 4}  # 0-3, 3-6, 6-10
    again = write_kolektor_thirds(root, tmp_path / "again")
    assert load_benchmark("ksdd", again)["image_id"] == load_benchmark("ksdd", output)["image_id"]
    with pytest.raises(OSError, match="not empty"):
        write_kolektor_thirds(root, output)
    (root / "kos03" / "Part0.jpg").write_bytes(b"broken")
    with pytest.raises(OSError, match="kos03"):
        write_kolektor_thirds(root, tmp_path / "third")
    assert not (tmp_path / "third").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "official", "thirds"]


def test_documentation_matches_the_benchmarks():
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    sections = dict(part.split("\n", 1) for part in text.split("\n## ")[1:])
    assert list(sections) == list(BENCHMARKS)
    for name, section in sections.items():
        benchmark = BENCHMARKS[name]
        words = " ".join(section.split())  # without line breaks
        for part in (benchmark.title, benchmark.source, benchmark.licence or "not established", benchmark.citation):
            assert part in words
        assert f"--benchmark {name}" in section
        counts = f"{benchmark.normal} | {benchmark.anomalous} | {len(benchmark.categories)}"
        masks = "yes" if benchmark.has_masks else "no"
        row = f"| [{name}](#{name}) | {benchmark.evaluated} | {counts} | {masks} | {benchmark.counts_source} |"
        assert row in text.splitlines()
