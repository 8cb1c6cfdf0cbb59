"""Weights in a bucket: what goes there comes back the same."""

from store_servers import BUCKET
from weight_files import assert_same_params, tiny_weights

from squeezenet_jax import weights
from squeezenet_jax.__main__ import main
from squeezenet_jax.system import storage
from squeezenet_jax.system.storage import buckets


def test_weights_go_to_a_bucket_and_come_back(google_store, tmp_path, capsys):
    given = tiny_weights()
    place = f"{google_store.root}/weights/tiny.safetensors"
    weights.save(place, given)
    storage.expand(place).unlink()  # what comes is what the bucket has
    assert_same_params(weights.load(place).params, given.params)
    assert main(["convert", place, f"{google_store.root}/weights/again.safetensors"]) == 0
    assert set(buckets.connect("gs", BUCKET).entries("weights/")) == {
        "weights/tiny.safetensors",
        "weights/again.safetensors",
    }
    assert main(["predict", f"{google_store.root}/weights/none.safetensors", "x.jpg"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {google_store.root}/weights/none.safetensors: no such file"
