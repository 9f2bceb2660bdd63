"""Files and folders that are written completely or not at all."""

import os
import stat
import sys

import pytest

from vip2clip_hf.utils.files import check_new_folder, file_names, new_folder, umask, write_atomically


@pytest.fixture
def stop(monkeypatch):
    """`os.replace` fails."""

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)


def permissions(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Folders


def test_check_new_folder(tmp_path):
    check_new_folder(tmp_path / "absent" / "deep")
    (tmp_path / "empty").mkdir()
    check_new_folder(str(tmp_path / "empty"))
    (tmp_path / "file").write_text("x")
    for target in (tmp_path, tmp_path / "file"):
        with pytest.raises(OSError, match=r"exists and is not empty; expected a new folder\.$"):
            check_new_folder(target)


@pytest.mark.parametrize("existing", [False, True])
def test_new_folder(existing, tmp_path):
    target = tmp_path / "deep" / "target"
    if existing:
        target.mkdir(parents=True)
    with new_folder(target) as folder:
        assert folder.parent == target.parent  # the same file system, so renaming is atomic
        (folder / "file").write_text("content")
        assert not (target / "file").exists()
    assert (target / "file").read_text() == "content"
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_new_folder_after_an_error(tmp_path):
    def write_half():
        with new_folder(tmp_path / "target") as folder:
            (folder / "file").write_text("content")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_new_folder_keeps_existing_files(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(OSError, match="expected a new folder"), new_folder(tmp_path):
        pytest.fail("the block must not run")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_follow_the_umask(mask, tmp_path):
    before = os.umask(mask)
    try:
        assert umask() == mask
        assert umask() == mask  # reading it does not change it
        with new_folder(tmp_path / "target"):
            pass
    finally:
        os.umask(before)
    assert permissions(tmp_path / "target") == 0o777 & ~mask


# Files


def test_write_atomically(tmp_path):
    path = tmp_path / "file.txt"
    write_atomically(path, "ViP²\n")
    assert path.read_bytes() == "ViP²\n".encode()
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [one.name for one in tmp_path.iterdir()] == ["file.txt"]


def test_a_failed_write_keeps_the_old_file(tmp_path, stop):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["file.txt"]


# Names


def test_file_names_differ_also_without_case():
    names = ["bolt", "Bolt", "bolt/1", "bolt_1", "a" * 200, "a" * 201, "bolt-2"]
    found = file_names(names)
    assert list(found) == names
    assert found["bolt"] == "bolt"
    assert len({name.lower() for name in found.values()}) == len(names)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("../../etc/passwd", "_.._etc_passwd"), ("..", "_"), ("", "_"), (".hidden", "hidden"), ("a b:c", "a_b_c")],
)
def test_file_names_are_safe(name, expected):
    assert file_names([name]) == {name: expected}
