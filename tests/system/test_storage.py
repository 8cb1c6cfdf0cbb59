"""Places in buckets, without a bucket: what is refused, and that a local path is what it was."""

import os
import sys
from pathlib import Path

import pytest

from squeezenet_jax.system import storage, terminal
from squeezenet_jax.system.errors import TryAgain, UserError


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


def test_what_can_be_tried_again_is_one_line_and_the_exit_code_that_says_so(capsys):
    def main():
        raise TryAgain("gs://bucket/x: cannot be reached for 180 s")

    assert terminal.exit_code(main) == os.EX_TEMPFAIL
    assert capsys.readouterr().err == "error: gs://bucket/x: cannot be reached for 180 s\n"
