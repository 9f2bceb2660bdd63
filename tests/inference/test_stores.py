"""Bulk prediction from and to stores: memory, and a local S3. Shards: tar archives and Parquet files."""

import io
import json
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from helpers.files import files_in
from helpers.predictions import ids_of, rows_of
from helpers.stores import empty, moto_s3, photos_for_stores, upload
from helpers.tiny import TINY, change_weights, tiny_config
from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor, cli
from vip2clip_hf.data import store_copy
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.inference import remote_folder, shards
from vip2clip_hf.inference.images import as_images, find_source
from vip2clip_hf.inference.prediction import predict_to_folder
from vip2clip_hf.utils import remote, remote_lock
from vip2clip_hf.utils.remote import RemoteFolder, StoreError
from vip2clip_hf.utils.remote_lock import RemoteLock
from vip2clip_hf.utils.urls import is_remote, is_safe, local_path


pytestmark = pytest.mark.xdist_group("stores")
OPTIONS = {"batch_size": 2, "chunk_size": 3}
MEMORY = fsspec.filesystem("memory")


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    model = ViP2ClipForAnomalyDetection(tiny_config()).eval()
    change_weights(model)
    return model, ViP2ClipImageProcessor(size=TINY["image_size"])


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return photos_for_stores(tmp_path_factory.mktemp("stores") / "photos")


@pytest.fixture(scope="module")
def expected(detector, photos, tmp_path_factory) -> pa.Table:
    """The table of the local folder."""
    output = tmp_path_factory.mktemp("expected") / "out"
    predict_to_folder(*detector, photos, output, **OPTIONS)
    return pq.read_table(output / "predictions.parquet")


@pytest.fixture(autouse=True)
def _settings(monkeypatch):
    monkeypatch.setattr(remote_lock, "SETTLE", 0.0)
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)


@pytest.fixture
def bucket(photos):
    upload(MEMORY, photos, "/bucket/photos")
    yield "memory://bucket"
    empty(MEMORY, "/bucket")


def table_of(url: str) -> pa.Table:
    return pq.read_table(io.BytesIO(MEMORY.cat_file(f"{url.removeprefix('memory:/')}/predictions.parquet")))


def assert_same(found: pa.Table, expected: pa.Table):
    """The same rows. Reasons name the place of the image, which differs."""
    assert found.schema.equals(expected.schema)
    assert found.drop_columns("error").equals(expected.drop_columns("error"))
    assert found["error"].is_null().equals(expected["error"].is_null())


def test_store_to_store(detector, bucket, expected):
    found = predict_to_folder(*detector, f"{bucket}/photos", f"{bucket}/out", **OPTIONS)
    assert (found["num_images"], found["num_unreadable"], found["num_done_before"]) == (12, 2, 0)
    assert found["table"] == f"{bucket}/out/predictions.parquet"
    assert_same(table_of(found["table"].rpartition("/")[0]), expected)
    names = [".vip2clip-images.parquet", ".vip2clip.json", "predictions.parquet", "settings.json"]
    assert [name.removeprefix("/bucket/out/") for name in MEMORY.find("/bucket/out")] == names
    assert json.loads(MEMORY.cat_file("/bucket/out/settings.json"))["source"] == {"folder": f"{bucket}/photos"}


def test_growing_folder_in_a_store(detector, bucket, photos, monkeypatch):
    predict_to_folder(*detector, f"{bucket}/photos", f"{bucket}/out", **OPTIONS)
    MEMORY.pipe_file("/bucket/photos/a.png", (photos / "x-1.png").read_bytes())
    MEMORY.pipe_file("/bucket/photos/new.png", (photos / "x-1.png").read_bytes())
    MEMORY.rm_file("/bucket/photos/b c.jpg")
    read, names = RemoteFolder.read, []
    monkeypatch.setattr(RemoteFolder, "read", lambda self, name, *a: (names.append(name), read(self, name, *a))[1])
    found = predict_to_folder(*detector, f"{bucket}/photos", f"{bucket}/out", **OPTIONS)
    assert (found["num_images"], found["num_done_before"]) == (12, 10)
    rows = {row["id"]: row for row in table_of(f"{bucket}/out").to_pylist()}
    assert rows["a.png"]["score"] == pytest.approx(rows["x-1.png"]["score"], abs=1e-6)
    assert rows["new.png"]["score"] == pytest.approx(rows["x-1.png"]["score"], abs=1e-6)
    # Objects of the same version are not downloaded again.
    assert "x-1.png" not in names
    assert {"a.png", "new.png"} <= set(names)
    again = predict_to_folder(*detector, f"{bucket}/photos", f"{bucket}/out", **OPTIONS)
    assert again["num_done_before"] == 12


def test_resumes_and_publishes_the_table_last(detector, bucket, expected, monkeypatch):
    """Killed after every few changes in the store, the run continues, and readers never see half of a result."""
    state = {"left": 0}
    changes: list[str] = []

    class Killed(BaseException):
        pass

    def counted(method):
        original = getattr(RemoteFolder, method)

        def call(self, name, *arguments):
            if not name.endswith("lock.json"):
                if state["left"] == 0:
                    raise Killed
                state["left"] -= 1
                changes.append(name)
            return original(self, name, *arguments)

        return call

    for method in ("write", "delete"):
        monkeypatch.setattr(RemoteFolder, method, counted(method))
    monkeypatch.setattr(remote_folder, "NUM_THREADS", 1)
    runs = 0
    while True:
        state["left"] = 6
        runs += 1
        try:
            found = predict_to_folder(*detector, f"{bucket}/photos", f"{bucket}/out", **OPTIONS)
            break
        except Killed:
            assert runs < 40
            if MEMORY.exists("/bucket/out/predictions.parquet"):
                assert_same(table_of(f"{bucket}/out"), expected)
    assert_same(table_of(f"{bucket}/out"), expected)
    assert runs > 2
    assert found["num_done_before"] == 12
    # Each part was written once: no finished work was repeated.
    parts = [name for name in changes if "/part-" in name]
    assert parts[:4] == [f".progress/part-{number:09d}.parquet" for number in range(4)]
    assert changes.index("predictions.parquet") > max(changes.index(name) for name in ("settings.json", *parts[:4]))
    assert MEMORY.find("/bucket/out/.progress") == []


def test_store_with_commits(detector, bucket, expected, tmp_path, monkeypatch):
    """On the Hub, only the results are written. The progress stays on this machine, and resumes there."""
    monkeypatch.setattr(remote_folder, "RESULTS_ONLY", ("memory",))
    monkeypatch.setattr(remote_folder, "store_cache", lambda: tmp_path / "cache" / "stores")
    write, written, parts = RemoteFolder.write, [], []

    def counted(self, name, content):
        written.append(name)
        write(self, name, content)

    write_part = remote_folder.PredictionFolder.write_part

    def killed(self, chunk, rows, states):
        if len(parts) == 2:
            raise KeyboardInterrupt
        parts.append(chunk)
        write_part(self, chunk, rows, states)

    monkeypatch.setattr(RemoteFolder, "write", counted)
    with monkeypatch.context() as patch:
        patch.setattr(remote_folder.PredictionFolder, "write_part", killed)
        with pytest.raises(KeyboardInterrupt):
            predict_to_folder(*detector, f"{bucket}/photos", f"{bucket}/hub", **OPTIONS)
    assert written == []
    found = predict_to_folder(*detector, f"{bucket}/photos", f"{bucket}/hub", **OPTIONS)
    assert found["num_done_before"] == 6
    assert written == [".vip2clip.json", ".vip2clip-images.parquet", "settings.json", "predictions.parquet"]
    assert_same(table_of(f"{bucket}/hub"), expected)
    assert predict_to_folder(*detector, f"{bucket}/photos", f"{bucket}/hub", **OPTIONS)["num_done_before"] == 12
    assert len(written) == 4


def test_one_writer(detector, bucket, monkeypatch):
    first = RemoteLock(RemoteFolder(f"{bucket}/out"), remote_folder.LOCK)
    first.acquire()
    with pytest.raises(OSError, match=r"Another program is writing to 'memory://bucket/out' \(process \d+ on "):
        predict_to_folder(*detector, f"{bucket}/photos", f"{bucket}/out", **OPTIONS)
    # The lock of a program that has ended on this machine, or was not renewed, is taken over.
    content = json.loads(MEMORY.cat_file("/bucket/out/.progress/lock.json"))
    for change in ({"pid": 2**22 + 1}, {"time": time.time() - 400, "machine": "another"}):
        first.folder.write(first.name, json.dumps({**content, **change}).encode())
        second = RemoteLock(first.folder, first.name)
        second.acquire()
        with pytest.raises(OSError, match="taken over"):
            first.check()
        second.release()
    first.folder.write(first.name, json.dumps({**content, "machine": "another", "owner": "another"}).encode())
    with pytest.raises(OSError, match="Another program"):
        second.acquire()
    first.release()  # not its own any more
    assert MEMORY.exists("/bucket/out/.progress/lock.json") is True


def test_only_one_of_many_gets_the_lock(bucket):
    locks = [RemoteLock(RemoteFolder(f"{bucket}/race"), "lock.json") for _ in range(8)]

    def take(lock: RemoteLock) -> bool:
        try:
            lock.acquire()
        except OSError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, locks)) == 1
    for lock in locks:
        lock.release()
    assert not MEMORY.exists("/bucket/race/lock.json")


def test_output_that_is_not_a_prediction(detector, bucket):
    MEMORY.pipe_file("/bucket/mine/notes.txt", b"mine")
    with pytest.raises(OSError, match="'memory://bucket/mine' is not empty and does not contain a prediction"):
        predict_to_folder(*detector, f"{bucket}/photos", f"{bucket}/mine", **OPTIONS)
    assert MEMORY.find("/bucket/mine") == ["/bucket/mine/notes.txt"]
    with pytest.raises(ValueError, match="heatmaps are only"):
        predict_to_folder(*detector, f"{bucket}/photos", f"{bucket}/maps", heatmaps=True, **OPTIONS)
    predict_to_folder(*detector, f"{bucket}/photos", f"{bucket}/out", **OPTIONS)
    with pytest.raises(OSError, match=r"'memory://bucket/out' was created with .*image_threshold"):
        predict_to_folder(*detector, f"{bucket}/photos", f"{bucket}/out", threshold=0.9, **OPTIONS)


def test_a_store_that_fails(detector, bucket, expected, monkeypatch):
    """A lost connection ends the run, which resumes. It does not make images unreadable."""
    cat, calls = type(MEMORY).cat_file, []

    def fails(self, path, *arguments, **options):
        calls.append(path)
        if path.endswith("x/1.png"):
            raise ConnectionResetError("connection reset")
        return cat(self, path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(MEMORY), "cat_file", fails)
        with pytest.raises(StoreError, match=r"x/1.png' cannot be accessed \(connection reset\)"):
            predict_to_folder(*detector, f"{bucket}/photos", f"{bucket}/out", **OPTIONS)
    assert sum(path.endswith("x/1.png") for path in calls) == remote.ATTEMPTS
    with monkeypatch.context() as patch:
        patch.setattr(type(MEMORY), "cat_file", fails)
        with pytest.raises(
            StoreError, match=r"^'memory://bucket/photos/x/1.png' cannot be accessed \(connection reset\).$"
        ):
            predict_to_folder(*detector, f"{bucket}/photos", f"{bucket}/out", num_workers=1, **OPTIONS)
    found = predict_to_folder(*detector, f"{bucket}/photos", f"{bucket}/out", **OPTIONS)
    assert found["num_done_before"] > 0
    assert_same(table_of(f"{bucket}/out"), expected)


def test_deleted_and_locked_objects(detector, bucket, tmp_path, monkeypatch):
    cat = type(MEMORY).cat_file

    def refuses(self, path, *arguments, **options):
        if path.endswith("x/1.png"):
            raise PermissionError("Access Denied")
        if path.endswith("x/2.png"):
            raise FileNotFoundError(path)
        return cat(self, path, *arguments, **options)

    monkeypatch.setattr(type(MEMORY), "cat_file", refuses)
    predict_to_folder(*detector, f"{bucket}/photos", tmp_path / "out", **OPTIONS)
    rows = rows_of(tmp_path / "out")
    assert "Access Denied" in rows["x/1.png"]["error"]
    assert "deleted after" in rows["x/2.png"]["error"]
    assert rows["x/y/deep.PNG"]["error"] is None


@pytest.fixture(scope="module")
def tar(photos, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tar") / "photos.tar"
    with tarfile.open(path, "w") as archive:
        for name in ids_of(photos):
            archive.add(photos / name, name)
        archive.add(photos / "a.png", ".hidden.png")
        archive.add(photos / "notes.txt", "notes.txt")
    return path


def write_parquet(path: Path, photos: Path, names: list[str], struct: bool = False):
    content = [(photos / name).read_bytes() for name in names]
    column = [{"bytes": one, "path": None} for one in content] if struct else content
    table = {"image" if struct else "bytes": column, "id": names}
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(table), path, row_group_size=5)


@pytest.mark.parametrize("workers", [0, 2])
def test_tar(workers, detector, tar, expected, tmp_path):
    predict_to_folder(*detector, str(tar), tmp_path / "out", num_workers=workers, **OPTIONS)
    assert_same(pq.read_table(tmp_path / "out" / "predictions.parquet"), expected)


@pytest.mark.parametrize("struct", [False, True])
def test_parquet(struct, detector, photos, expected, tmp_path):
    write_parquet(tmp_path / "shards" / "one.parquet", photos, ids_of(photos), struct)
    source = f"{tmp_path / 'shards'}/*.parquet"
    predict_to_folder(*detector, source, tmp_path / "out", heatmaps=True, **OPTIONS)
    assert_same(pq.read_table(tmp_path / "out" / "predictions.parquet"), expected)
    assert sum(name.startswith("heatmaps/") for name in files_in(tmp_path / "out")) == 10


def test_shards_in_a_store(detector, bucket, photos, tar, expected, tmp_path, monkeypatch):
    """Blocks that end in the middle of an image, several shards, a folder of shards, and patterns."""
    monkeypatch.setattr(shards, "BLOCK", 1000)
    MEMORY.pipe_file("/bucket/one/photos.tar", tar.read_bytes())
    predict_to_folder(*detector, f"{bucket}/one", tmp_path / "one", **OPTIONS)
    assert_same(pq.read_table(tmp_path / "one" / "predictions.parquet"), expected)

    names = ids_of(photos)
    for number, part in enumerate((names[:7], names[7:])):
        write_parquet(tmp_path / "local" / f"train-{number:02d}.parquet", photos, part)
    upload(MEMORY, tmp_path / "local", "/bucket/two")
    for text in (f"{bucket}/two", f"{bucket}/two/train-*.parquet", f"{bucket}/two/train-{{00..01}}.parquet"):
        images = as_images(text, "out")
        found = [name.decode() for name in images.names().to_pylist()]
        assert found == [f"train-{number:02d}.parquet/{name}" for number, part in
                         enumerate((names[:7], names[7:])) for name in part]  # fmt: skip
    predict_to_folder(*detector, f"{bucket}/two", tmp_path / "two", num_workers=2, **OPTIONS)
    table = pq.read_table(tmp_path / "two" / "predictions.parquet")
    assert_same(table.set_column(0, table.schema.field(0), expected["id"]), expected)
    with pytest.raises(OSError, match=r"'train-02.parquet' not found"):
        as_images(f"{bucket}/two/train-{{00..02}}.parquet", "out")

    # A new shard does not repeat the work for the others.
    write_parquet(tmp_path / "local" / "train-02.parquet", photos, names[:1])
    upload(MEMORY, tmp_path / "local", "/bucket/two")
    found = predict_to_folder(*detector, f"{bucket}/two", tmp_path / "two", **OPTIONS)
    assert (found["num_images"], found["num_done_before"]) == (13, 12)


def test_samples_of_webdataset(photos, tmp_path):
    names = ["0001.jpg", "0001.mask.png", "0001.json", "sub/0002.png", "sub/0002.depth.png", "v1.2.jpg", "v1.3.jpg"]
    with tarfile.open(tmp_path / "web.tar", "w") as archive:
        for name in names:
            archive.add(photos / "a.png", name)
    images = as_images(str(tmp_path / "web.tar"), "out")
    assert images.names().to_pylist() == [b"0001.jpg", b"sub/0002.png", b"v1.2.jpg", b"v1.3.jpg"]


def test_members_stay_below_the_root(detector, photos, tmp_path):
    """Names that leave their root are rows with an error, and nothing is written outside of the output."""
    names = ["../../evil.png", "/absolute.png", "a/../../b.png", "c\\..\\d.png", "good.png"]
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "evil.tar", "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = (photos / "a.png").stat().st_size
            archive.addfile(member, io.BytesIO((photos / "a.png").read_bytes()))
        for kind, name in ((tarfile.SYMTYPE, "link.png"), (tarfile.LNKTYPE, "hard.png")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    before = files_in(tmp_path)
    predict_to_folder(
        *detector, str(tmp_path / "in" / "evil.tar"), tmp_path / "out", heatmaps=True, maps=True, **OPTIONS
    )
    rows = rows_of(tmp_path / "out")
    assert set(rows) == set(names)
    assert [name for name, row in rows.items() if row["error"] is None] == ["good.png"]
    assert "cannot be part of a path" in rows["../../evil.png"]["error"]
    assert {name for name in files_in(tmp_path) - before if not name.startswith("out/")} == set()


def test_damaged_tar(detector, tar, tmp_path):
    (tmp_path / "cut.tar").write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    found = predict_to_folder(*detector, str(tmp_path / "cut.tar"), tmp_path / "out", **OPTIONS)
    rows = rows_of(tmp_path / "out")
    assert 1 < found["num_images"] < 13
    assert "is damaged; the images after" in rows["/"]["error"]
    (tmp_path / "photos.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="compressed archive"):
        find_source(str(tmp_path / "photos.tar.gz"))


def test_safe_names_and_urls():
    assert all(map(is_safe, ("a.png", "a/b c.png", "..a/b..png", "…")))
    assert not any(map(is_safe, ("", "../a", "a/..", "/a", "a//b", "a/./b", "a\\b", "C:/a", "a\0b")))
    assert all(map(is_remote, ("s3://b/c", "gs://b", "hf://datasets/a/b", "memory://x")))
    assert not any(
        map(is_remote, ("photos", "C:\\photos", "https://x/y.png", "file:///tmp", "mvtec=s3://b", Path("a")))
    )
    assert local_path("file:///tmp/a%20b") == "/tmp/a b"
    with pytest.raises(ValueError, match="nosuch://bucket' cannot be opened"):
        RemoteFolder("nosuch://bucket")


def test_missing_package(monkeypatch):
    monkeypatch.setattr("fsspec.url_to_fs", lambda url: __import__("gcsfs_is_not_installed"))
    with pytest.raises(
        ImportError, match=r"gs:// needs gcsfs, which is not installed: pip install 'vip2clip_hf\[cloud\]'"
    ):
        RemoteFolder("gs://bucket")


def test_dataset_in_a_store(bucket, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(store_copy, "store_cache", lambda: tmp_path / "cache")
    names = ("bad/3.png", "good/1.png", "good/2.png")
    for name in names:
        MEMORY.pipe_file(f"/bucket/screws/{name}", (photos / "a.png").read_bytes())
    dataset = load_folder(f"{bucket}/screws")
    assert sorted(zip(dataset["image_id"], dataset["label"])) == [
        ("bad/3.png", 1),
        ("good/1.png", 0),
        ("good/2.png", 0),
    ]
    copied = []
    download = RemoteFolder.download
    monkeypatch.setattr(
        RemoteFolder, "download", lambda self, name, to: (copied.append(name), download(self, name, to))
    )
    MEMORY.pipe_file("/bucket/screws/bad/4.png", (photos / "x-1.png").read_bytes())
    MEMORY.rm_file("/bucket/screws/good/2.png")
    assert sorted(load_folder(f"{bucket}/screws")["image_id"]) == ["bad/3.png", "bad/4.png", "good/1.png"]
    assert copied == ["bad/4.png"]
    MEMORY.store["/bucket/screws/../outside.png"] = MEMORY.store["/bucket/screws/bad/4.png"]
    try:
        with pytest.raises(ValueError, match="cannot be part of a path"):
            load_folder(f"{bucket}/screws")
    finally:
        del MEMORY.store["/bucket/screws/../outside.png"]
    with pytest.raises(OSError, match="not found"):
        load_folder(f"{bucket}/nothing")


def test_command(bucket, expected, detector, tmp_path):
    for part in detector:
        part.save_pretrained(tmp_path / "model")
    command = ["predict", f"{bucket}/photos", "--model", str(tmp_path / "model"), "--output", f"{bucket}/command"]
    done = CliRunner().invoke(cli.app, [*command, "--batch-size", "2", "--device", "cpu"])
    assert done.exit_code == 3, done.output
    assert "Written to memory://bucket/command/predictions.parquet" in done.output
    table = table_of(f"{bucket}/command")
    assert table["id"].equals(expected["id"])
    for found, same in zip(table["score"].to_pylist(), expected["score"].to_pylist()):
        assert found == (None if same is None else pytest.approx(same, abs=1e-5))
    inside = CliRunner().invoke(cli.app, [*command[:-1], f"{bucket}/photos/out"])
    assert isinstance(inside.exception, OSError)
    assert "is inside 'memory://bucket/photos'" in str(inside.exception)
    csv = ["--csv", str(tmp_path / "results.csv")]
    for more, text in (
        (["--engine", "spark"], "expected accelerate or ray"),
        (["--num-actors", "2"], "--engine ray"),
        (csv, "which is in a store"),
        (["--output", str(tmp_path / "here"), "--sort", str(tmp_path / "sorted")], "which is in a store"),
    ):
        wrong = CliRunner().invoke(cli.app, [*command, *more])
        assert wrong.exit_code == 2
        assert text in " ".join(wrong.output.replace("│", " ").split())
    wrong = CliRunner().invoke(cli.app, command[:4])
    assert wrong.exit_code == 2
    assert "is in a store" in wrong.output
    local = CliRunner().invoke(cli.app, [*command[:-1], str(tmp_path / "here"), *csv, "--device", "cpu"])
    assert local.exit_code == 3, local.output
    assert len((tmp_path / "results.csv").read_text(encoding="utf-8").splitlines()) == len(expected) + 1


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with moto_s3(tmp_path_factory.mktemp("aws")) as fs:
        yield fs


@pytest.mark.slow
def test_s3(detector, s3, photos, expected, tmp_path):
    upload(s3, photos, "photos/set")
    found = predict_to_folder(*detector, "s3://photos/set", "s3://results/run", **OPTIONS)
    assert found["table"] == "s3://results/run/predictions.parquet"
    assert_same(pq.read_table(io.BytesIO(s3.cat_file("results/run/predictions.parquet"))), expected)
    assert not s3.exists("results/run/.progress")
    assert predict_to_folder(*detector, "s3://photos/set", "s3://results/run", **OPTIONS)["num_done_before"] == 12
    # Keys that are no paths are rows with an error.
    for key in ("odd/../evil.png", "odd/x//double.png", "odd/good.png"):
        s3.call_s3("put_object", Bucket="photos", Key=key, Body=(photos / "a.png").read_bytes())
    predict_to_folder(*detector, "s3://photos/odd", tmp_path / "odd", **OPTIONS)
    rows = rows_of(tmp_path / "odd")
    assert list(rows) == ["../", "good.png", "x//"]
    assert [row["error"] is None for row in rows.values()] == [False, True, False]
    # Only one program can create an object.
    folder = RemoteFolder("s3://results/lock")
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda number: folder.create("one", b"%d" % number), range(8))) == 1
    with pytest.raises(OSError, match="not found"):
        predict_to_folder(*detector, "s3://photos/nothing", tmp_path / "out", **OPTIONS)
