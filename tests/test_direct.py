"""Files beside the system's cache: the same bytes as through it, whatever the disk, the place and the length."""

from concurrent.futures import ThreadPoolExecutor
import errno
import fcntl
import os
import threading

import numpy as np
import pytest

from mean_jax.data import direct
from mean_jax.data.direct import PAGE_BYTES, empty_pages, open_direct, pages, read, write

SIZES = [1, PAGE_BYTES - 1, PAGE_BYTES, 3 * PAGE_BYTES + 17]


def random_pages(num_bytes, seed=0):
    memory = empty_pages(num_bytes)
    memory[:] = np.random.default_rng(seed).integers(0, 256, len(memory), dtype=np.uint8)
    return memory


def is_direct(file):
    return bool(fcntl.fcntl(file, fcntl.F_GETFL) & direct._O_DIRECT)


@pytest.fixture(params=["direct", "no flag", "refused when opened", "refused when used"])
def system(request, monkeypatch):
    """File systems that know direct access, and those that do not."""
    if request.param == "no flag":
        monkeypatch.setattr(direct, "_O_DIRECT", 0)
    elif request.param == "refused when opened":
        original = os.open

        def refuse(path, flags, *mode):
            if flags & direct._O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument", path)
            return original(path, flags, *mode)

        monkeypatch.setattr(os, "open", refuse)
    elif request.param == "refused when used":  # blocks larger than a page

        class Refusing(direct.io.FileIO):
            def write(self, data):
                require_cache(self)
                return super().write(data)

        def require_cache(file):
            if is_direct(file):
                raise OSError(errno.EINVAL, "Invalid argument")

        preadv = os.preadv
        monkeypatch.setattr(direct.io, "FileIO", Refusing)
        monkeypatch.setattr(os, "preadv", lambda file, *rest: require_cache(file) or preadv(file, *rest))
    return request.param


def test_memory_is_whole_pages():
    for num_bytes in SIZES:
        memory = empty_pages(num_bytes)
        assert memory.ctypes.data % PAGE_BYTES == 0
        assert len(memory) == pages(num_bytes) >= num_bytes
        assert pages(num_bytes) % PAGE_BYTES == 0
        assert pages(num_bytes) - num_bytes < PAGE_BYTES


@pytest.mark.parametrize("num_bytes", SIZES)
def test_what_is_written_is_there(tmp_path, system, num_bytes):
    data = random_pages(num_bytes)[:num_bytes]
    with open_direct(tmp_path / "file", "wb") as file:
        write(file, data)
    assert (tmp_path / "file").read_bytes() == data.tobytes()


def test_whole_pages_are_appended_one_after_the_other(tmp_path, system):
    parts = [random_pages(count * PAGE_BYTES, seed=count) for count in (1, 3, 2)]
    for part in parts:
        with open_direct(tmp_path / "file", "ab") as file:
            write(file, part)
    assert (tmp_path / "file").read_bytes() == b"".join(part.tobytes() for part in parts)


def test_memory_that_begins_within_a_page_is_written_too(tmp_path):
    data = random_pages(2 * PAGE_BYTES)[1:]
    with open_direct(tmp_path / "file", "wb") as file:
        write(file, data)
    assert (tmp_path / "file").read_bytes() == data.tobytes()


def test_words_are_written_as_bytes(tmp_path):
    words = np.arange(10, dtype=np.float32).reshape(2, 5)
    with open_direct(tmp_path / "file", "wb") as file:
        write(file, words)
    np.testing.assert_array_equal(np.fromfile(tmp_path / "file", np.float32), words.ravel())


@pytest.mark.parametrize("position", [0, 1, PAGE_BYTES - 1, PAGE_BYTES, 2 * PAGE_BYTES + 100])
@pytest.mark.parametrize("num_bytes", SIZES)
def test_bytes_are_read_from_anywhere(tmp_path, system, position, num_bytes):
    content = np.random.default_rng(0).integers(0, 256, 5 * PAGE_BYTES + 30, dtype=np.uint8)
    content.tofile(tmp_path / "file")
    with open_direct(tmp_path / "file", "rb") as file:
        found = read(file, position, num_bytes, empty_pages(num_bytes + PAGE_BYTES))
    np.testing.assert_array_equal(found, content[position : position + num_bytes])  # shorter where the file ends


def test_a_read_goes_on_where_the_system_stopped(tmp_path, monkeypatch):
    content = random_pages(4 * PAGE_BYTES)
    content.tofile(tmp_path / "file")
    original = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, parts, at: original(file, [parts[0][:PAGE_BYTES]], at))
    with open_direct(tmp_path / "file", "rb") as file:
        found = read(file, 10, 3 * PAGE_BYTES, empty_pages(4 * PAGE_BYTES))
    np.testing.assert_array_equal(found, content[10 : 10 + 3 * PAGE_BYTES])


def test_nothing_is_read_behind_the_end(tmp_path, system):
    (tmp_path / "file").write_bytes(b"abc")
    with open_direct(tmp_path / "file", "rb") as file:
        assert read(file, 2, 10, empty_pages(2 * PAGE_BYTES)).tobytes() == b"c"
        assert len(read(file, 3, 10, empty_pages(2 * PAGE_BYTES))) == 0
        assert len(read(file, 3 * PAGE_BYTES + 5, 10, empty_pages(2 * PAGE_BYTES))) == 0


def test_other_errors_are_those_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_direct(tmp_path / "missing", "rb")
    (tmp_path / "full").symlink_to("/dev/full")
    with open_direct(tmp_path / "full", "wb") as file, pytest.raises(OSError, match="No space left"):
        write(file, random_pages(PAGE_BYTES))
    with open_direct(tmp_path / "file", "wb") as file, pytest.raises(OSError, match="Bad file descriptor"):
        read(file, 0, 1, empty_pages(2 * PAGE_BYTES))


def test_only_a_refusal_of_direct_access_is_tried_again(tmp_path, monkeypatch):
    opened = []

    def deny(path, flags, *_):
        opened.append(flags)
        raise OSError(errno.EACCES, "Permission denied", path)

    (tmp_path / "file").write_bytes(b"abc")
    with open_direct(tmp_path / "file", "r+") as file:
        monkeypatch.setattr(os, "preadv", lambda *_: os.read(-1, 1))
        with pytest.raises(OSError, match="Bad file descriptor"):
            read(file, 0, 1, empty_pages(2 * PAGE_BYTES))
        calls = []

        def refuse(*_):
            calls.append(1)
            raise OSError(errno.EINVAL, "Invalid argument")

        monkeypatch.setattr(os, "preadv", refuse)
        with pytest.raises(OSError, match="Invalid argument"):
            read(file, 0, 1, empty_pages(2 * PAGE_BYTES))
        assert len(calls) == 2
    monkeypatch.setattr(os, "open", deny)
    with pytest.raises(PermissionError):
        open_direct(tmp_path / "file", "rb")
    assert len(opened) == 1


def test_threads_that_share_a_file_are_refused_together(tmp_path, monkeypatch):
    """Both are told that the disk knows no direct access before either has the file go through the cache."""
    content = random_pages(2 * PAGE_BYTES)
    content.tofile(tmp_path / "file")
    both, original, refused = threading.Barrier(2), os.preadv, set()

    def refuse(*given):
        if threading.get_ident() not in refused:
            refused.add(threading.get_ident())
            both.wait(30)
            raise OSError(errno.EINVAL, "Invalid argument")
        return original(*given)

    monkeypatch.setattr(os, "preadv", refuse)
    with open_direct(tmp_path / "file", "rb") as file, ThreadPoolExecutor(2) as threads:
        found = threads.map(lambda start: read(file, start, 5000, empty_pages(3 * PAGE_BYTES)), (0, 10))
        for start, part in zip((0, 10), found, strict=True):
            np.testing.assert_array_equal(part, content[start : start + 5000])


def test_whole_pages_go_around_the_cache_where_the_disk_can(tmp_path):
    with open_direct(tmp_path / "file", "wb") as file:
        if not is_direct(file):
            pytest.skip("this file system knows no direct access")
        write(file, random_pages(2 * PAGE_BYTES))
        assert is_direct(file)
    with open_direct(tmp_path / "file", "rb") as file:
        read(file, 100, PAGE_BYTES, empty_pages(2 * PAGE_BYTES))
        assert is_direct(file)
