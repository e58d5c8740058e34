"""Files appear whole or not at all, and JSON files verify themselves."""

import errno
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

import pytest

from mean_jax.errors import UserError
from mean_jax.fileio import (
    atomic_file,
    atomic_folder,
    file_sha256,
    read_json,
    remove_temporaries,
    require_free_output,
    write_json,
)


class Broken(Exception):
    """Stands for anything that goes wrong while writing."""


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_atomic_file_appears_at_the_end(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert leftovers(path.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [Broken(), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_failed_atomic_file_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(type(error)), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == ["file.txt"]


def test_an_atomic_folder_appears_at_the_end_and_may_replace_an_empty_one(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("1")
        assert leftovers(path) == []
    assert leftovers(path) == ["a"]
    assert leftovers(tmp_path) == ["folder"]


@pytest.mark.parametrize("error", [Broken(), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_failed_atomic_folder_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)), atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "a").write_text("1")
        raise error
    assert leftovers(tmp_path) == []


def test_an_output_with_content_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("1")
    with pytest.raises(UserError, match=r"--output: folder .*folder exists and is not empty; remove it or choose"):
        atomic_folder(tmp_path / "folder").__enter__()
    with pytest.raises(UserError, match=r"--workdir: .*a exists already"):
        require_free_output(tmp_path / "folder" / "a", "--workdir")
    assert leftovers(tmp_path / "folder") == ["a"]


KILLED = """
import os, signal, sys
from pathlib import Path
from mean_jax.fileio import atomic_file, atomic_folder
with atomic_file(Path(sys.argv[1]) / "latest-12.json") as file, atomic_folder(Path(sys.argv[1]) / "best") as folder:
    file.write_text("half")
    (folder / "a").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_leaves_is_removed_and_nothing_else(tmp_path):
    kept = [".best.tmp", ".notes.0123456789ab.txt", "best.0123456789ab.tmp", "latest-8.json"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert len(leftovers(tmp_path)) == len(kept) + 2
    remove_temporaries(tmp_path, "latest-")
    assert len(leftovers(tmp_path)) == len(kept) + 1
    remove_temporaries(tmp_path)
    assert leftovers(tmp_path) == sorted(kept)


def test_a_rename_is_on_disk_before_the_writer_goes_on(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    with atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("whole")
    assert synced == [str(temporary), str(tmp_path)]


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 64 KiB."""
    if shutil.which("mount") is None:
        pytest.skip("no mount command")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("mounting a file system is not permitted")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_nothing_is_left_on_a_disk_that_is_full(full_disk):
    with pytest.raises(OSError, match="No space left") as failure, atomic_file(full_disk / "file") as temporary:
        temporary.write_bytes(bytes(1 << 20))
    assert failure.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="No space left"), atomic_folder(full_disk / "folder") as temporary:
        (temporary / "a").write_bytes(bytes(1 << 20))
    assert leftovers(full_disk) == []


def test_the_checksum_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def json_path(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, "thing", 3, {"values": (1, 2.5), "nested": {"30": None}, "name": "Zoë"})
    return path


def test_json_round_trip(json_path):
    assert read_json(json_path, "thing", 3) == {"values": [1, 2.5], "nested": {"30": None}, "name": "Zoë"}
    assert leftovers(json_path.parent) == ["a.json"]


def test_json_of_another_kind_or_version_is_refused(json_path):
    with pytest.raises(UserError, match=r"a\.json: is a thing file, expected other"):
        read_json(json_path, "other", 3)
    with pytest.raises(UserError, match=r"a\.json: format version 3, this program reads version 4; use the program"):
        read_json(json_path, "thing", 4)


def test_altered_json_is_refused(json_path):
    json_path.write_text(json_path.read_text().replace("2.5", "2.4"))
    with pytest.raises(UserError, match=r"a\.json: checksum does not match"):
        read_json(json_path, "thing", 3)


def test_json_cut_anywhere_is_refused(json_path):
    content = json_path.read_bytes().rstrip()
    for length in range(len(content)):
        json_path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"a\.json: damaged or not a thing file"):
            read_json(json_path, "thing", 3)


@pytest.mark.parametrize("text", ["[1]", "3", '"text"', "null", json.dumps({"format": "thing"}), "\x00\x01"])
def test_other_json_is_refused(json_path, text):
    json_path.write_text(text)
    with pytest.raises(UserError, match=r"a\.json: damaged or not a thing file"):
        read_json(json_path, "thing", 3)


def test_missing_json_is_named(tmp_path):
    with pytest.raises(UserError, match=r"b\.json: missing; expected a thing file"):
        read_json(tmp_path / "b.json", "thing", 3)


@pytest.mark.parametrize("path", ["", ".", "folder/.."])
def test_the_current_folder_is_no_output(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    for output in (path, Path(path)):
        with pytest.raises(UserError, match=r"^--output: is empty or the current folder; name a folder or file"):
            atomic_folder(output).__enter__()
    assert leftovers(tmp_path) == []


def test_an_output_may_be_written_in_any_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with atomic_folder(Path("new/../folder")) as temporary:
        (temporary / "a").write_text("1")
    assert (tmp_path / "folder" / "a").read_text() == "1"


def test_a_link_or_a_mount_point_is_no_output(tmp_path, full_disk):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    before = leftovers(tmp_path)
    for path, what in (("link", "symbolic link"), ("dangling", "symbolic link"), ("disk", "mount point")):
        with pytest.raises(UserError, match=rf"^--output: .*{path} is a {what}, which cannot be replaced; name a new"):
            atomic_folder(tmp_path / path).__enter__()
    assert leftovers(tmp_path) == before


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "a.parquet").mkdir()
    with pytest.raises(UserError, match=r"^--output: .*a\.parquet is a folder, and a name that ends in \.parquet"):
        require_free_output(tmp_path / "a.parquet")
