"""The table that `summary` prints."""

import json

import pytest

from squeezenet_jax.__main__ import main


def test_a_table_shows_what_is_computed_and_what_it_costs(capsys):
    assert main(["summary", "--bypass", "simple", "--width", "0.25", "--image-size", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "output", "H", "x", "W", "x", "C", "params", "MACs"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert rows["fire3/expand3x3"] == ["15", "x", "15", "x", "16", "592", "129,600"]
    assert rows["fire3/sum"] == ["15", "x", "15", "x", "32"] and "fire2/sum" not in rows  # simple bypass shows
    assert not any("concat" in name for name in rows)
    assert rows["total"] == ["0.68", "MiB", "178,168", "7,233,376"]
    # the image, 64 x 64 x 3 values, and conv1, 32 x 32 x 24
    assert lines[-1] == "peak activations: 147,456 bytes in float32, 36,864 bytes in int8, at conv1, batch 1"


def test_activations_are_options_too(capsys):
    assert main(["summary", "--activation", "swish", "--no-squeeze-activation", "--format", "json"]) == 0
    activation = {layer["name"]: layer["activation"] for layer in json.loads(capsys.readouterr().out)["layers"]}
    assert (activation["conv1"], activation["fire2/squeeze1x1"], activation["fire2/expand1x1"]) == (
        "swish",
        "none",
        "swish",
    )


@pytest.mark.parametrize("bypass", ["none", "complex"])
def test_json_has_every_column_and_adds_up(bypass, capsys):
    assert main(["summary", "--bypass", bypass, "--format", "json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["params"] == sum(layer["params"] for layer in summary["layers"])
    assert summary["weight_bytes"]["float32"] == 4 * summary["params"]
    assert summary["peak_activation_bytes"]["float32"] == 4 * summary["peak_activation_bytes"]["int8"]
    assert summary["layers"][1] == {
        "name": "pool1",
        "kind": "max_pool",
        "inputs": ["conv1"],
        "in_channels": 96,
        "shape": [55, 55, 96],
        "kernel": 3,
        "stride": 2,
        "borders": [0, 0],
        "activation": "none",
        "norm": "none",
        "params": 0,
        "macs": 0,
        "activation_size": 290_400,
    }
