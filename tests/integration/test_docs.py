"""Check the documentation: run its code blocks, check its links, and build the site."""

import importlib
import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

import vip2clip_hf
from helpers import benchmark_trees as trees, docs_runner as runner
from helpers.good_photos import bad_photo, good_photo, write_photos
from helpers.rivals import clip_tokenizer, tiny_text_clip
from helpers.tiny import EXAMPLES, FIXTURES, tiny_clip_config
from vip2clip_hf import ViP2ClipForAnomalyDetection
from vip2clip_hf.checkpoints.bundled import bundled_checkpoint
from vip2clip_hf.data.synthetic.dataset import generate_image, write_dataset


ROOT = runner.ROOT
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in (ROOT / "README.md", ROOT / "training" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
SLOW = (
    "docs/baselines.md", "docs/bulk.md", "docs/calibration.md", "docs/compare.md", "docs/data.md",
    "docs/deployment.md", "docs/detectors.md", "docs/endpoints.md", "docs/evaluation.md", "docs/export.md",
    "docs/performance.md", "docs/pictures.md", "docs/quickstart.md", "docs/references.md", "docs/reports.md",
    "docs/reproduction.md", "docs/runtime.md", "docs/scale.md", "docs/serve.md", "docs/training.md",
    "docs/tutorial.md", "docs/watch.md",
    "training/README.md",
)  # fmt: skip
# Packages that a page needs and that may be missing.
NEEDS = {
    "docs/export.md": ("onnx", "onnxscript", "onnxruntime"),
    "docs/runtime.md": ("onnx", "onnxscript", "onnxruntime", "openvino"),
    "docs/serve.md": ("fastapi", "uvicorn", "prometheus_client", "python_multipart"),
}

# Commands that are not run, and the reason. Their options are still compared with --help.
NOT_RUN = {
    r"(uv )?pip install .*": "installs into the environment",
    r"vip2clip app.*": "serves until it is stopped; run in a browser by test_app_browser.py",
    r"vip2clip watch .*": "runs until it is stopped; run by tests/watching",
    r"vip2clip push .*": "publishes; run with a stub of the Hub by tests/hub/test_endpoint.py",
    r"vip2clip predict s3://.*": "needs a bucket; run with a local S3 by tests/inference/test_stores.py",
    r"make (demo|test|test-all|docs).*": "creates an environment, or runs this test; its steps are tested separately",
    r"python -m benchmarks .*": "takes minutes",
    r"vip2clip reproduce (all|tables).*": "takes minutes; run by tests/reproduction/test_small_plan.py",
    r"python -m training\.build_tiny .*": "needs half an hour and real data; test_build_tiny.py runs it on small data",
    r"(cp -r|hf) .*": "writes to the Hub; the Space is built by test_app.py",
    r"vip2clip convert .* --method .*": "needs a file of the authors; tests/baselines converts recorded ones",
    r".*--push_to_hub .*": "publishes; run with a stub of the Hub by test_programs.py",
}
# Placeholders in commands, and their values in this test.
WORDS = {"SEED": "1", "VARIANT": "release"}
# Arguments added to commands so that they finish in seconds on a CPU. They override earlier arguments.
SMALL = {
    r".*training/train\.py .*": "--num_train_epochs 1 --average_weights_from 0 --use_cpu true "
    "--disable_tqdm true --dataloader_num_workers 0",
    r".*--recipe mvtec.*": "--image_size 70 --top_k 5",
    r"vip2clip train --method .*": "--max_steps 2 --use_cpu true --disable_tqdm true --image_size 64",
    r"vip2clip train --model .*": "--max_steps 2 --use_cpu true --disable_tqdm true",
    r"vip2clip train (?!--method|--model).*": "--num_train_epochs 1 --average_weights_from 0 --use_cpu true "
    "--disable_tqdm true --image_size 70 --top_k 5 --output_dir outputs_on_backbone",
    r"vip2clip train .*--dry-run.*": "--image_size 64",
    r"vip2clip evaluate .*|.*training/evaluate\.py .*": "--sheets 1",
}
# Replacements in Python blocks: (page, text, replacement).
SMALL_PYTHON = [
    (
        "docs/app.md",
        'Client("http://127.0.0.1:7860/")',
        "Client(__import__('helpers.served_app', fromlist=['served_app']).address_for_docs(), verbose=False)",
    ),
    ("docs/training.md", 'output_dir="outputs"', 'output_dir="outputs", num_train_epochs=1, use_cpu=True'),
]


# Files and folders used by the pages. They are created if a page contains their name.


def _photos(folder: Path):
    """Write three normal images, and three anomalous images with masks."""
    for kind, defect in (("normal", None), ("anomalous", "scratch")):
        for number in range(3):
            picture, mask = generate_image("weave", defect, 96, seed=number)
            for part, image in ((kind, picture), ("masks", mask)):
                if image is not None and (part != "masks" or defect):
                    (folder / part).mkdir(parents=True, exist_ok=True)
                    image.save(folder / part / f"{kind}_{number}.png")


def _data_set(seed: int, category: str = "waves") -> Callable[[Path], None]:
    return lambda root: write_dataset(root, (category,), num_normal=3, num_anomalous=1, size=64, seed=seed)


def _clip(folder: Path, layers: int, patch: int, side: int, joint: int = 16, text: int = 16):
    """Write a narrow CLIP with the same number of blocks and patches as the real one."""
    config = tiny_clip_config()
    vision = {**config.vision_config.to_dict(), "hidden_size": 16, "intermediate_size": 32}
    vision.update(num_hidden_layers=layers, patch_size=patch, image_size=side)
    text_config = {**config.text_config.to_dict(), "hidden_size": text, "intermediate_size": 2 * text}
    clip = CLIPModel(CLIPConfig(projection_dim=joint, text_config=text_config, vision_config=vision))
    recorded = load_file(FIXTURES / "oracle_release" / "clip.safetensors")
    if recorded["token_rows"].shape[1] == text:  # the conversion compares the state words
        with torch.no_grad():
            table = clip.text_model.embeddings.token_embedding.weight
            table[recorded["token_ids"]] = recorded["token_rows"].float()
    clip.save_pretrained(folder)


def _text_clip(folder: Path):
    """A narrow CLIP with a text tokenizer that knows the words of prompts."""
    tiny_text_clip(image_size=224, patch_size=32).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)


def _backbone(folder: Path):
    ViP2ClipForAnomalyDetection.from_pretrained(bundled_checkpoint()).clip.save_pretrained(folder)


def _vit(folder: Path):
    """A vision transformer in the layout of the named one, with few channels and random weights."""
    shape = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 12, "patch_size": 14, "image_size": 70}
    Dinov2Model(Dinov2Config(**shape)).save_pretrained(folder)


def _flat(folder: Path, count: int = 2):
    folder.mkdir()
    for number in range(count):
        generate_image("weave", None, 96, seed=number)[0].save(folder / f"{number}.png")


def _normal(folder: Path):
    _flat(folder, 12)


def _large(photo: Callable[..., Image.Image]) -> Callable[[int], Image.Image]:
    return lambda number: photo(number, (120, 96))


def _table(path: Path):
    _photos(path.with_suffix(""))
    images = sorted(path.with_suffix("").glob("[na]*/*.png"))
    rows = [f"{image.relative_to(path.parent)},{'fein' if 'normal' in image.name else 'riss'}" for image in images]
    path.write_text("\n".join(["bild,befund", *rows]))


def _photo(path: Path):
    Image.open(EXAMPLES / "hazelnut_damaged_1.jpg").save(path)


PREPARED: dict[str, Callable[[Path], object]] = {
    "training": lambda folder: shutil.copytree(ROOT / "training", folder),
    "src/vip2clip_hf/examples": lambda folder: shutil.copytree(EXAMPLES, folder),
    "photo.jpg": _photo,
    "notes.txt": lambda path: path.write_text("Not a photo."),
    "photos": _photos,
    "normal_photos": _normal,
    "good_photos": lambda folder: write_photos(folder, 10, photo=_large(good_photo)),
    "more_photos": lambda folder: write_photos(folder, 3, 20, _large(good_photo)),
    "bad_photos": lambda folder: write_photos(folder, 5, 50, _large(bad_photo)),
    "parts.csv": _table,
    "parts": _photos,
    "other_parts": _photos,
    "CHECKPOINT": lambda folder: shutil.copytree(bundled_checkpoint(), folder),
    "A": _data_set(0),
    "B": _data_set(1),
    "C": _data_set(2),
    "nuts": lambda root: write_dataset(root, ("waves",), num_normal=3, num_anomalous=1, size=64, num_train=6),
    "hazelnut_toy": _data_set(3),
    "cookies": _data_set(4),
    "magnetic_tile": _data_set(5),
    "synthetic_set": _data_set(6),
    "TOWER": lambda folder: _clip(folder, layers=12, patch=14, side=224),
    "TEXT_CLIP": _text_clip,
    "CLIP": lambda folder: _clip(folder, layers=12, patch=16, side=224),
    # Sizes that match the recorded checkpoint of the authors' code.
    "openai/clip-vit-large-patch14-336": lambda folder: _clip(folder, 24, 14, 336, joint=64, text=96),
    "epoch_10.pth": lambda path: shutil.copy(FIXTURES / "oracle_release" / "release_checkpoint.pth", path),
    "path/to/clip": _backbone,
    "facebook/dinov2-small": _vit,
    "data/MVTec": trees.mvtec_official,  # used in the recipes
    "data/VisA": trees.visa_official,
    "MVTec": trees.mvtec_official,
    "VisA": trees.visa_official,
    "MPDD": trees.mpdd_official,
    "BTAD": trees.btad_official,
    "KolektorSDD": trees.ksdd_official,
    "DAGM": trees.dagm_official,
    "DTD-Synthetic": trees.dtd_official,
    "HeadCT": trees.headct_official,
    "BrainMRI": trees.brainmri_official,
    "Br35H": trees.br35h_official,
    "ISIC": trees.isic_official,
    "CVC-ColonDB": trees.colondb_official,
    "CVC-ClinicDB": trees.clinicdb_official,
    "EndoTect": trees.endo_official,
    "Kvasir-SEG": trees.kvasir_official,
}
# Names with a different meaning on one page.
OWN: dict[tuple[str, str], Callable[[Path], object]] = {("docs/quickstart.md", "photos"): _flat}
# Files and folders that a page needs if it contains this text.
IMPLIED = {"--recipe mvtec": ("data/MVTec", "data/VisA", "openai/clip-vit-large-patch14-336")}


def prepare(page: str, code: str, folder: Path):
    wanted = {name for name in PREPARED if re.search(rf"(?<![\w/-]){re.escape(name)}(?![\w-])", code)}
    wanted |= {name for text, names in IMPLIED.items() if text in code for name in names}
    for name in (name for name in PREPARED if name in wanted):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        OWN.get((page, name), PREPARED[name])(target)


def _hub_data_set(path: str, split: str, **kwargs) -> datasets.Dataset:
    assert (path, split) == ("org/parts", "test")
    rows = {"image": [generate_image("weave", None, 64)[0]] * 2, "label": ["good", "bad"], "product": ["a", "b"]}
    return datasets.Dataset.from_dict(rows)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in PAGES]
)
def test_code_runs(name, tmp_path, monkeypatch, request):
    servers = runner.Servers()
    request.addfinalizer(servers.close)
    blocks = runner.read_blocks(PAGES[name])
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    code = "\n".join(block.text for block in blocks)
    prepare(name, code, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", _hub_data_set)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # a page changes it
    if "torch.compile(" in code and not any(map(shutil.which, ("g++", "clang++", "cl"))):
        pytest.skip("torch.compile needs a C++ compiler")
    namespace = {"__name__": "__main__"}
    for block in blocks:
        where = f"{name}, line {block.line}"
        if block.language == "python":
            text = block.text
            for page, shown, real in SMALL_PYTHON:
                text = text.replace(shown, real) if page == name else text
            out = runner.run_python(runner.Block("python", servers.as_run(text), block.line), name, namespace)
        elif block.language in runner.SHELL:
            out = "".join(run(command, servers) for command in runner.read_commands(block))
        elif block.language in ("json", "yaml"):
            runner.parse_data(block)
            continue
        else:
            assert block.language in runner.SHOWN, f"{where}: unknown language {block.language!r}"
            continue
        if block.output is not None:
            try:
                runner.same_output(block.output, out)
            except AssertionError as error:
                raise AssertionError(f"{where}: the block has a different output.\n{out}\n{error}") from error


def run(command: str, servers: runner.Servers | None = None) -> str:
    if any(re.fullmatch(pattern, command) for pattern in NOT_RUN):
        if "..." not in command and command.split()[0] in ("make", "pip"):
            check_target(command)
        elif command.split()[0] not in ("cp", "hf"):
            runner.check_options(command)
        return ""
    if servers is not None and command.startswith("vip2clip serve"):
        return servers.start(command)
    if servers is not None and command.startswith("curl "):
        return servers.curl(command)
    # "training/train.py ..." is an abbreviation. Run it with the arguments of the first command on the page.
    same = "training/train.py --recipe tiny --train_data A --output_dir outputs/again"
    command = command.replace("training/train.py ...", same)
    words = [WORDS.get(word, word) for word in command.split()]
    command = " ".join(words)
    for pattern, more in SMALL.items():
        if re.fullmatch(pattern, command):
            command += f" {more}"
    return runner.run_command(command)


def check_target(command: str):
    """Check that the target of the Makefile, or the extras of the package, exist."""
    words = command.split()
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
    for extra in re.findall(r"\.\[([\w,]+)\]", command):
        for one in extra.split(","):
            assert re.search(rf"^{one} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE), command


def all_commands() -> list[str]:
    return [
        command
        for page in PAGES.values()
        for block in runner.read_blocks(page)
        if block.language in runner.SHELL
        for command in runner.read_commands(block)
    ]


def test_exceptions_are_still_needed():
    """Every entry in the tables above applies to at least one page."""
    commands = all_commands()
    for pattern in (*NOT_RUN, *SMALL):
        assert any(re.fullmatch(pattern, command) for command in commands), pattern
    for page, shown, _ in SMALL_PYTHON:
        assert shown in PAGES[page].read_text(encoding="utf-8"), shown
    assert set(SLOW) | set(NEEDS) <= set(PAGES)


# Longest lines of code, and of outputs in a smaller font, that fit the site at 1280 pixels, see docs/extra.css.
CODE_WIDTH, OUTPUT_WIDTH = 96, 106
# Tables that a command prints.
WIDER = ("docs/compare.md", "docs/detectors.md")
MARKDOWN = (*PAGES, "CONTRIBUTING.md", "benchmarks/README.md", "spaces/README.md")


@pytest.mark.parametrize("name", MARKDOWN)
def test_blocks_fit_the_page(name):
    """Readers do not scroll to read a command."""
    for block in runner.read_blocks(ROOT / name):
        code = [line for line in block.text.splitlines() if len(line) > CODE_WIDTH]
        assert not code, f"{name}, block of line {block.line}: {code}"
        output = [line for line in (block.output or "").splitlines() if len(line) > OUTPUT_WIDTH]
        assert not output or name in WIDER, f"{name}, output of line {block.line}: {output}"


def test_the_notebook_fits_the_page():
    cells = json.loads((ROOT / "docs" / "notebooks" / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    lines = [line.rstrip() for cell in cells if cell["cell_type"] == "code" for line in cell["source"]]
    assert [line for line in lines if len(line) > CODE_WIDTH] == []


# Links


@pytest.mark.parametrize("name", MARKDOWN)
def test_links_have_titles(name):
    """The text of a link says what the page is about, not how its file is called."""
    text = (ROOT / name).read_text(encoding="utf-8")
    assert re.findall(r"\[`?[\w./-]+\.(?:md|ipynb)`?\]\([^)]*\)", text) == []


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as created by GitHub and mkdocs."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links(name):
    page = PAGES[name]
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r'(?:\](?=\()\(|<img src=")([^)"\s]+)[)"]', text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{name}: {target}"
        assert not anchor or anchor in anchors(linked), f"{name}: {target}"
    for path in re.findall(r"`((?:tests|training|docs|src)/[\w./-]+\.\w+)`", text):
        assert (ROOT / path).exists(), f"{name}: {path}"


def test_every_page_is_in_the_index():
    index = PAGES["docs/index.md"].read_text(encoding="utf-8")
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "index.md" or f"({path.name})" in index, f"docs/index.md does not list {path.name}"


# The site


@pytest.mark.slow
def test_site_builds(tmp_path):
    """Build the site in strict mode: all pages are in the navigation, and all links and API names are found."""
    pytest.importorskip("material", reason="extra `docs` is not installed")
    pytest.importorskip("mkdocstrings", reason="extra `docs` is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    api = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    for path in api_names():
        assert f'id="{path}"' in api, path
    notebook = (tmp_path / "site" / "notebooks" / "quickstart.html").read_text(encoding="utf-8")
    assert "AnomalyDetectionPipeline" in notebook
    assert 'href="quickstart.ipynb"' in notebook  # to download
    assert 'href="notebooks/quickstart.html"' in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    for page in (tmp_path / "site").glob("**/*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|link rel=\"stylesheet\")[^>]*(?:src|href)=\"(https?:[^\"]+)", text)
        assert not loaded, f"{page.name} needs a network: {loaded}"


def api_names() -> list[str]:
    return re.findall(r"^::: ([\w.]+)$", PAGES["docs/api.md"].read_text(encoding="utf-8"), re.MULTILINE)


def test_api_page():
    """Tables and text list the same names, all exported names are listed, and docstrings keep all their words."""
    pytest.importorskip("griffe", reason="extra `docs` is not installed")
    spec = importlib.util.spec_from_file_location("mkdocs_docstrings", ROOT / "docs" / "mkdocs_docstrings.py")
    docstrings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docstrings)
    text = PAGES["docs/api.md"].read_text(encoding="utf-8")
    listed = [f"{module}.{name}" for name, module in re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|", text, re.MULTILINE)]
    assert sorted(listed) == sorted(api_names())
    for path in listed:
        module, _, name = path.rpartition(".")
        described = getattr(importlib.import_module(module), name)
        for one in (described, *(vars(described).values() if isinstance(described, type) else ())):
            docstring = inspect.getdoc(one) if callable(one) else None
            if docstring:
                words = re.findall(r"\w+", docstrings.to_markdown(docstring, {}))
                assert words == re.findall(r"\w+", docstring), path
    names = {path.rpartition(".")[2] for path in listed}
    exported = {*vip2clip_hf.__all__, *vip2clip_hf.data.__all__} - {
        "__version__", "BENCHMARKS", "EVALUATE_MODULE", "ViP2ClipPreTrainedModel"
    }  # fmt: skip
    assert exported <= names


# Tests of this test


@pytest.mark.parametrize(
    ("shown", "real", "same"),
    [
        ("score 0.968 anomalous", "score 0.971 anomalous", True),
        ("score 0.968 anomalous", "score 0.95 anomalous", False),
        ("6510 pixels", "6530 pixels", True),
        ("6510 pixels", "6900 pixels", False),
        ("a normal", "a anomalous", False),
        ("one\ntwo", "one", False),
        ("one\n...\nfour", "one\ntwo\nthree\nfour", True),
        ("one\n...\nfour", "one\ntwo\nthree", False),
    ],
)
def test_outputs_are_compared(shown, real, same):
    if same:
        runner.same_output(shown, real)
    else:
        with pytest.raises(AssertionError):
            runner.same_output(shown, real)


def test_unknown_blocks_and_commands_fail(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    listed = "- item\n\n  ```bash\n  # no\n  vip2clip data \\\n    x\n  ```\n"
    page.write_text(f"```python\nprint(1)\n```\n\n```\n2\n```\n\n{listed}")
    blocks = runner.read_blocks(page)
    found = [(block.language, block.line, block.output) for block in blocks]
    assert found == [("python", 2, "2\n"), ("bash", 12, None)]
    assert runner.read_commands(blocks[1]) == ["vip2clip data x"]
    with pytest.raises(AssertionError, match="cannot be run"):
        run("somecommand --now")
    with pytest.raises(AssertionError, match="exit code 1"):
        run("vip2clip data absent")
    with pytest.raises(AssertionError, match="unknown option --imagess"):
        run("python -m benchmarks data --imagess 3")
    with pytest.raises(AssertionError):
        run("make docs-of-old")
