import errno
import hashlib
import json
import os
import stat

import numpy as np
import pytest

from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_text_json_and_lines_are_written_as_they_are_read(tmp_path):
    value = {"π": [1, 2.5, None, True], "text": "“x”\n"}
    files.write_json(tmp_path / "new" / "deep" / "a.json", value)
    assert files.read_json(tmp_path / "new" / "deep" / "a.json") == value
    files.write_jsonl(tmp_path / "a.jsonl", ({"i": i, "t": "a\nb"} for i in range(3)))
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["i"] for line in lines] == [0, 1, 2]
    files.write_text(tmp_path / "a.txt", "é\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\n"


def test_arrays_keep_their_types_and_shapes(tmp_path):
    arrays = {
        "values": np.arange(3, dtype=np.float32),
        "offsets": np.array([0, 3], np.int64),
        "none": np.zeros((0, 2), bool),
    }
    files.write_npz(tmp_path / "a.npz", **arrays)
    read = files.read_npz(tmp_path / "a.npz")
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with files.atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_a_new_file_has_ordinary_permissions(tmp_path):
    mask = os.umask(0o027)
    try:
        files.write_text(tmp_path / "a", "x")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt()])
def test_a_block_that_fails_changes_nothing_and_keeps_its_error(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)), files.atomic_write(path) as file:
        file.write(b"half")
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_says_what_to_do(tmp_path, monkeypatch, call):
    path = tmp_path / "a.json"
    path.write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(UserError, match=r"a\.json: No space left on device\..* choose another"):
        files.write_json(path, {"new": 1})
    assert path.read_text() == "old" and names(tmp_path) == ["a.json"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    # A file where a directory is wanted: no user, not even root, may write below it.
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"Cannot write .*a\.npz: Not a directory"):
        files.write_npz(tmp_path / "file" / "a.npz", a=np.zeros(1))
    (tmp_path / "directory").mkdir()
    with pytest.raises(UserError, match=r"Cannot write .*directory: Is a directory"):
        files.write_text(tmp_path / "directory", "x")
    assert names(tmp_path) == ["directory", "file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write there")
def test_a_read_only_directory_is_named(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match=r"a\.txt: Permission denied"):
            files.write_text(tmp_path / "a.txt", "x")
    finally:
        tmp_path.chmod(0o700)


def test_a_read_only_file_system_is_named(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files.pathlib.Path, "open", read_only)
    with pytest.raises(UserError, match=r"a\.txt: Read-only file system"):
        files.write_text(tmp_path / "a.txt", "x")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_json_does_not_know_is_refused_and_nothing_is_written(tmp_path, bad):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", {"loss": bad})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_jsonl(tmp_path / "a.jsonl", [{"loss": 1.0}, {"loss": bad}])
    assert names(tmp_path) == []


def test_objects_are_neither_written_nor_read(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(TypeError, match="array names has dtype object"):
        files.write_npz(path, names=np.array(["a", None], object))
    with pytest.raises(TypeError, match="array pairs has dtype object"):
        files.write_npz(path, pairs=np.zeros(1, [("a", object), ("b", int)]))
    assert names(tmp_path) == []
    np.savez(path, a=np.array([{}], object))
    with pytest.raises(UserError, match=r"a\.npz is not a valid NPZ file"):
        files.read_npz(path)


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "flipped"])
def test_a_damaged_npz_file_is_named(tmp_path, damage):
    path = tmp_path / "a.npz"
    files.write_npz(path, a=np.random.default_rng(0).normal(size=500))
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "empty": b"",
            "text": b"not an archive",
            "truncated": whole[:middle],
            "flipped": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
        }[damage]
    )
    with pytest.raises(UserError, match=r"a\.npz is not a valid NPZ file: .* Delete it"):
        files.read_npz(path)


@pytest.mark.parametrize(
    ("content", "place"),
    [(b'{"a": 1,\n "b": }', "line 2 column 7"), (b"", "line 1"), (b'"\xff"', "utf-8")],
)
def test_damaged_json_is_named_with_its_place(tmp_path, content, place):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.json is not valid JSON: .*{place}"):
        files.read_json(path)


@pytest.mark.parametrize("read", [files.read_json, files.read_npz, files.digest])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(UserError, match=r"Cannot read .*nowhere: No such file or directory\."):
        read(tmp_path / "nowhere")


def test_the_digest_of_a_file_is_its_sha256(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc" * 500_000)
    assert files.digest(path) == hashlib.sha256(b"abc" * 500_000).hexdigest()


def test_the_digest_of_a_directory_knows_names_and_bytes_alone(tmp_path):
    def digest(name, contents):
        for path, content in contents.items():
            files.write_text(tmp_path / name / path, content)
        return files.digest(tmp_path / name)

    first = digest("one", {"a": "1", "b/c": "2"})
    assert digest("two", {"b/c": "2", "a": "1"}) == first
    others = [
        digest("bytes", {"a": "1", "b/c": "3"}),
        digest("name", {"a": "1", "b/d": "2"}),
        digest("more", {"a": "1", "b/c": "2", "d": ""}),
        digest("moved", {"a1": "", "b/c": "2"}),
        digest("swapped", {"a": "2", "b/c": "1"}),
    ]
    assert len({first, *others}) == 6


def test_equal_arrays_make_equal_files(tmp_path):
    for name in ("one.npz", "two.npz"):
        files.write_npz(tmp_path / name, a=np.arange(9), b=np.ones(2))
    assert files.digest(tmp_path / "one.npz") == files.digest(tmp_path / "two.npz")


def test_large_files_are_read_once_while_they_stay_as_they_are(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    monkeypatch.setattr(files, "_CACHE_BYTES", 2)
    read, digest = [], files._digest
    monkeypatch.setattr(files, "_digest", lambda path: read.append(path) or digest(path))
    first = files.digest(path)
    assert files.digest(path) == first
    assert len(read) == 1
    path.write_bytes(b"other")
    assert files.digest(path) != first
