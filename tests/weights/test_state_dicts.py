"""Which of a checkpoint's mappings is the network, and by which names it can be asked for."""

import numpy as np
import pytest
from weight_files import Call, Name, Tensor, assert_same_params, checkpoint, refused, state_dict, tensors, tiny_weights

from squeezenet_jax import weights
from squeezenet_jax.weights.formats.state_dicts import OTHERS, TAKEN

FIRST, SECOND = tiny_weights(seed=0), tiny_weights(seed=1)
STATE, AVERAGE = tensors(state_dict(FIRST)), tensors(state_dict(SECOND))
OTHER = {"features.0.weight": Tensor(np.zeros((64, 3, 3, 3), np.float32)), "fc.weight": Tensor(np.ones(2, np.float32))}


@pytest.mark.parametrize(
    ("value", "taken", "others"),
    [
        ({"ema": AVERAGE, "x": STATE}, "x", "ema"),  # an average is taken last, wherever it stands
        ({"model": {"shadow": AVERAGE}, "x": STATE}, "x", "model.shadow"),
        (STATE | tensors(state_dict(SECOND), prefix="ema."), None, "ema"),  # a name is its longest prefix's
        ({"net": AVERAGE, "model": {"weights": STATE}}, "model.weights", "net"),  # by its most usual name
        ({"state_dict": STATE, "student": OTHER}, "state_dict", None),  # what would not fit is no choice
        ({"runs": [{"epoch": 1}, (STATE,)]}, "runs.1.0", None),
        ({"a": {"b": {"c": {"d": {"e": STATE}}}}}, "a.b.c.d.e", None),
    ],
)
def test_which_is_taken_and_which_others_there_are(write, value, taken, others):
    again = weights.load(write("w.pth", checkpoint(value)))
    assert_same_params(again.params, FIRST.params)
    assert (again.provenance.get(TAKEN), again.provenance.get(OTHERS)) == (taken, others)


@pytest.mark.parametrize("wish", ["net.ema", "ema"])
def test_a_prefix_can_be_asked_for_with_or_without_the_keys_that_lead_to_it(write, wish):
    both = STATE | tensors(state_dict(SECOND), prefix="ema.")
    again = weights.load(write("w.pth", checkpoint({"net": both})), state_dict=wish)
    assert_same_params(again.params, SECOND.params)


def test_a_network_can_be_asked_for_by_its_last_key(write):
    path = write("w.pth", checkpoint({"net": STATE, "ema": {"shadow": AVERAGE}}))
    assert_same_params(weights.load(path, state_dict="shadow").params, SECOND.params)


def test_the_error_is_the_likeliest_networks(write):
    lacking = {key: x for key, x in STATE.items() if key != "features.0.bias"}
    path = write("w.pth", checkpoint({"ema": OTHER, "state_dict": lacking}))
    refused(path, "missing features.0.bias$")


def test_what_only_ends_like_a_name_of_torchvisions_is_none(write):
    path = write("w.pth", checkpoint(tensors(state_dict(FIRST), prefix="backbone")))
    refused(path, "features.0.weight is missing; the file has backbonefeatures")


def test_single_numbers_beside_the_parameters_are_skipped(write):
    scale = {"temperature": Tensor(np.ones(1, np.float32)), "features.0.momentum": Tensor(np.ones((), np.float32))}
    assert_same_params(weights.load(write("w.pth", checkpoint(STATE | scale))).params, FIRST.params)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"_buffers": {"mean": Tensor(np.ones(3, np.float32))}}, "surplus mean"),
        ({"_parameters": {"x": Call(Name("os", "system"), ("true",))}}, "refused: x: the pickle asks for os.system"),
        ({"_buffers": {"mean": None}}, None),
    ],
)
def test_a_whole_modules_buffers_and_parameters_are_its_state_dict(write, parts, message):
    own = {"_parameters": {**STATE, **parts.get("_parameters", {})}, "_buffers": parts.get("_buffers", {})}
    path = write("w.pth", checkpoint(Call(Name("nets", "Net"), (), own, is_new=True)))
    if message:
        refused(path, message)
    else:
        assert_same_params(weights.load(path).params, FIRST.params)
