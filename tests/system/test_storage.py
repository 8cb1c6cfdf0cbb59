"""Places in buckets, without a bucket: what is refused, and that a local path is what it was."""

import os
import sys
import time
from pathlib import Path

import pytest

from squeezenet_jax.system import ending, storage
from squeezenet_jax.system.errors import TryAgain, UserError
from squeezenet_jax.system.storage import buckets


@pytest.mark.parametrize("place", ["a/b", "~/runs", "~nobody_is_called_so/x", "hf:x", "a:b/c", "./gs:x", "", Path("a")])
def test_a_local_path_is_itself(place):
    for local in (storage.expand(place), storage.cached(place), storage.local_only(place, "OUT", "")):
        assert local == Path(os.path.expanduser(place))
        assert not storage.is_remote(local)


@pytest.mark.parametrize(
    ("place", "parts"),
    [
        ("gcs://bucket/x", ('unknown value "gcs"', "gs, s3", 'did you mean "gs"')),
        ("hdfs://a/b", ('unknown value "hdfs"',)),
        ("https://a/b.pth", ('unknown value "https"',)),
        ("gs://", ("it must be gs://BUCKET/PATH",)),
        ("s3:///key", ("it must be s3://BUCKET/PATH",)),
        ("s3://bucket/a/../b", ("it must be s3://BUCKET/PATH",)),
    ],
)
def test_a_place_that_is_none_is_refused_in_one_line_that_names_it(place, parts):
    for expand in (storage.expand, storage.cached):
        with pytest.raises(UserError) as refused:
            expand(place, "--workdir")
        text = str(refused.value)
        assert text.startswith(f"--workdir: {place}: ") and "\n" not in text
        assert all(part in text for part in parts)


@pytest.mark.parametrize(("scheme", "module"), [("gs", "google.cloud.storage"), ("s3", "boto3")])
def test_a_store_whose_client_is_not_installed_names_the_extra(scheme, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    for place in (f"{scheme}://bucket/x", Path(f"{scheme}://bucket/x")):  # a Path has lost a slash
        with pytest.raises(UserError, match=rf"^OUT: {scheme}:.*is not installed: pip install -r requirements-"):
            storage.expand(place, "OUT")


def test_what_needs_a_local_folder_refuses_a_bucket():
    with pytest.raises(UserError, match=r"^OUT: gs://bucket/x: is in a bucket; it must be a local folder$"):
        storage.local_only("gs://bucket/x", "OUT", "it must be a local folder")


@pytest.fixture
def many_objects(tmp_path, monkeypatch):
    """(bucket, path of its copy): an instance whose downloads a test replaces."""
    bucket = buckets.Bucket("many-objects")
    bucket.scheme = "gs"
    monkeypatch.setattr(bucket, "entries", lambda prefix: {f"d/{n}": buckets.Entry("1", 1, 0.0) for n in range(200)})
    monkeypatch.setattr(storage, "split", lambda path: (bucket, "d"))
    return bucket, tmp_path / "copy" / "d"


def test_a_fetch_that_is_interrupted_does_not_fetch_the_rest_and_leaves_nothing(many_objects, monkeypatch):
    (bucket, path), begun = many_objects, []

    def download(key, part):
        begun.append(key)
        if key == "d/0":
            raise KeyboardInterrupt
        time.sleep(0.05)
        part.write_bytes(b"x")

    monkeypatch.setattr(bucket, "download", download)
    path.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        storage.fetch(path)
    assert len(begun) < 50
    assert [left.name for left in path.parent.parent.iterdir()] == ["copy"]


def test_parts_that_a_killed_process_left_go_after_a_day(many_objects, monkeypatch):
    bucket, path = many_objects
    monkeypatch.setattr(bucket, "download", lambda key, part: part.write_bytes(b"x"))
    path.mkdir(parents=True)
    old, new = (path.parent.parent / f"{storage.PARTS}{name}" for name in ("old", "new"))
    for left in (old, new):
        left.mkdir()
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    storage.fetch(path)
    assert (old.exists(), new.exists(), len(list(path.iterdir()))) == (False, True, 200)


def test_what_can_be_tried_again_is_one_line_and_the_exit_code_that_says_so(capsys):
    def main():
        raise TryAgain("gs://bucket/x: cannot be reached for 180 s")

    assert ending.exit_code(main) == os.EX_TEMPFAIL
    assert capsys.readouterr().err == "error: gs://bucket/x: cannot be reached for 180 s\n"
