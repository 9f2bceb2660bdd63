"""A local S3, and folders uploaded to stores."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.predictions import write_photos


@contextlib.contextmanager
def moto_s3(folder: Path) -> Iterator[Any]:
    """Start a local S3 and let the environment point to it. Yields a file system of fsspec."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_CONFIG_FILE": str(folder / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials"),
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # those of other tests have another address
    try:
        fs = s3fs.S3FileSystem()
        for bucket in ("photos", "photos-for-ray", "results"):
            if not fs.exists(bucket):
                fs.mkdir(bucket)
        yield fs
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def upload(fs: Any, folder: Path, target: str) -> None:
    """Write the files of a folder to a store."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = f"{target}/{path.relative_to(folder).as_posix()}"
            fs.makedirs(name.rpartition("/")[0], exist_ok=True)
            fs.pipe_file(name, path.read_bytes())


def photos_for_stores(folder: Path) -> Path:
    """Write photos with odd names that a local S3 accepts: it refuses line breaks."""
    root = write_photos(folder)
    (root / "z'\n\".png").rename(root / "z'.png")
    return root


def empty(fs: Any, folder: str) -> None:
    """Delete a folder of a store."""
    with contextlib.suppress(FileNotFoundError):
        fs.rm(folder, recursive=True)
