"""Checkpoints as training scripts write them: the network is found, all else is skipped and never executed.

The pickles have the same names and opcodes as those of torch 2, Lightning, timm and torchvision's references.
"""

import collections
import subprocess

import numpy as np
import pytest
import safetensors.numpy
from weight_files import (
    Call,
    Name,
    Tensor,
    assert_same_params,
    checkpoint,
    refused,
    state_dict,
    tensors,
    tiny_weights,
)

from squeezenet_jax import weights
from squeezenet_jax.__main__ import main
from squeezenet_jax.settings import ModelSettings
from squeezenet_jax.weights import transfer
from squeezenet_jax.weights.formats.state_dicts import OTHERS, TAKEN

FIRST, SECOND = tiny_weights(seed=0), tiny_weights(seed=1)
STATE, AVERAGE = tensors(state_dict(FIRST)), tensors(state_dict(SECOND))
PLAIN = {**state_dict(FIRST)}


def new(module, attribute, **state):
    return Call(Name(module, attribute), (), state, is_new=True)


PATH = Call(Name("pathlib", "PosixPath"), ("/", "data", "images"))
DEVICE = Call(Name("torch", "device"), ("cuda", 0))
NUMPY_FLOAT = Call(
    Name("numpy.core.multiarray", "scalar"),
    (Call(Name("numpy", "dtype"), ("f8", False, True), (3, "<", None, None, None, -1, -1, 0)), b"\0" * 8),
)
NUMPY_ARRAY = Call(
    Name("numpy.core.multiarray", "_reconstruct"),
    (Name("numpy", "ndarray"), (0,), b"b"),
    (1, (3,), Name("numpy", "float64"), False, b"\0" * 24),
)
ARGS = new(
    "argparse",
    "Namespace",
    data_path=PATH,
    device=DEVICE,
    weights=None,
    lr=0.1,
    nested=[[1, [2, (3, [])]], {"a": {1, 2}}],
    size=Call(Name("torch", "Size"), ((1, 2),)),
    dtype=Name("torch", "float16"),
)
OPTIMIZER = {
    "state": {
        i: {"step": Tensor(np.float32(1).reshape(())), "exp_avg": Tensor(np.zeros(3, np.float32))} for i in (0, 1)
    },
    "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "foreach": None, "params": [0, 1]}],
}
HISTORY = {
    "loss": [i / 7 for i in range(100_000)],
    "best": NUMPY_FLOAT,
    "confusion": NUMPY_ARRAY,
    "seen": Call(Name("collections", "Counter"), ({"cat": 3, ("a", 1): 2, None: 1, 1.5: 0},)),
    "by_class": Call(Name("collections", "defaultdict"), (Name("builtins", "list"),), None, ((1, [2]), ((1, 2), 3))),
    "own": Call(Name("training.tools", "Averages"), (), {"window": 3}, (("a", 1),)),
    "frozen": frozenset({1, 2}),
    "huge": 1 << 300,
    "bytes": b"\0\xff" * 100,
    "long": Tensor(np.arange(5), "Long"),
    "int8": Tensor(np.arange(5, dtype=np.int8), "Char"),
    "bool": Tensor(np.array([True, False]), "Bool"),
    "half": Tensor(np.zeros(3, np.float16), "Half"),
    "bfloat16": Tensor(np.zeros(3, np.uint16), "BFloat16"),
    "complex": Tensor(np.zeros(3, np.complex64), "ComplexFloat"),
    "empty": Tensor(np.zeros((0, 3), np.float32)),
    "many dimensions": Tensor(np.zeros((1,) * 9, np.float32)),
}
SCRIPTS = {
    "torchvision": {
        "model": STATE,
        "optimizer": OPTIMIZER,
        "lr_scheduler": {"last_epoch": 3},
        "epoch": 3,
        "args": ARGS,
    },
    "Lightning": {
        "epoch": 1,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": tensors(state_dict(FIRST), prefix="model.") | {"loss.weight": Tensor(np.ones(3, np.float32))},
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': None}": {"best_model_score": Tensor(np.ones(1, np.float32)), "dirpath": PATH}
        },
        "optimizer_states": [OPTIMIZER],
        "hyper_parameters": {"device": DEVICE, "root": PATH},
    },
    "timm": {
        "epoch": 1,
        "arch": "squeezenet",
        "state_dict": STATE,
        "args": ARGS,
        "amp_scaler": {},
        "metric": NUMPY_FLOAT,
    },
    "CIFAR": {"net": tensors(state_dict(FIRST), prefix="module."), "acc": 93.1, "epoch": 3},
    "history": {**HISTORY, "weights": STATE},
    "pairs": [3, STATE],
    "parameters": {"params": tensors(state_dict(FIRST), parameter=True)},
    "own kind of dict": Call(Name("easydict", "EasyDict"), (), None, (("model", STATE), ("epoch", 3)), is_new=True),
    "flat": {**STATE, "epoch": 3, "lr": 0.1, "name": "x", "note": None},
    "counters": {
        **STATE,
        "total_ops": Tensor(np.zeros(1), "Double"),
        "features.0.total_params": Tensor(np.zeros(1), "Double"),
        "features.3.num_batches_tracked": Tensor(np.array(5), "Long"),
        "temperature": Tensor(np.float32(2).reshape(())),
        "order": Tensor(np.arange(7), "Long"),
    },
}


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_what_scripts_save_is_read(write, script, legacy, protocol):
    path = write("w.pth", checkpoint(SCRIPTS[script], legacy=legacy, protocol=protocol))
    assert_same_params(weights.load(path).params, FIRST.params)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "x"])
def test_any_key_will_do_and_is_recorded(write, key, legacy):
    again = weights.load(write("w.ckpt", checkpoint({"epoch": 1, key: STATE}, legacy=legacy)))
    assert_same_params(again.params, FIRST.params)
    assert again.provenance[TAKEN] == key and OTHERS not in again.provenance


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "net.", "module._orig_mod.model.", "student."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_prefixes_of_wrappers_are_removed(write, prefix, suffix):
    prefixed = {prefix + key: x for key, x in PLAIN.items()}
    beside = {"n_averaged": np.array(3), "criterion.weight": np.ones(3, np.float32)}
    if suffix == ".safetensors":
        content = safetensors.numpy.save(prefixed | beside)
    else:
        kinds = {"n_averaged": "Long"}
        content = checkpoint({key: Tensor(x, kinds.get(key, "Float")) for key, x in (prefixed | beside).items()})
    assert_same_params(weights.load(write(f"w{suffix}", content)).params, FIRST.params)


def test_counters_in_safetensors_are_skipped(write):
    counters = {"features.0.num_batches_tracked": np.array(3), "total_ops": np.zeros(1)}
    path = write("w.safetensors", safetensors.numpy.save(PLAIN | counters))
    assert_same_params(weights.load(path).params, FIRST.params)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_what_python_2_wrote_is_read(write, legacy):
    """Byte strings as keys, and an OrderedDict made of a list of pairs."""
    pairs = [[key, x] for key, x in STATE.items()]
    state = Call(Name("collections", "OrderedDict"), (pairs,), {"_metadata": {}})
    seen = Call(Name("collections", "Counter"), ({"caf\xe9": 3},))
    value = {"epoch": 3, "arch": "squeezenet", "state_dict": state, "seen": seen, "note": "n" * 300}
    path = write("w.pth", checkpoint(value, legacy=legacy, python2=True))
    assert_same_params(weights.load(path).params, FIRST.params)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_module_that_was_saved_as_a_whole_is_read(write, legacy):
    """Its class is not needed: the tensors are where every module keeps them."""
    root = {}
    for key, x in PLAIN.items():
        *path, last = key.split(".")
        node = root
        for part in path:
            node = node.setdefault(part, {})
        node[last] = Tensor(x, parameter=True)

    def module(node):
        parts = {name: module(inner) for name, inner in node.items() if isinstance(inner, dict)}
        own = {name: inner for name, inner in node.items() if isinstance(inner, Tensor)}
        hooks = collections.OrderedDict()
        return new("my_models.vision", "Module", training=True, _parameters=own, _modules=parts, _forward_hooks=hooks)

    for value in (module(root), {"model": module({"module": root}), "epoch": 3}):
        assert_same_params(weights.load(write("w.pth", checkpoint(value, legacy=legacy))).params, FIRST.params)


# -- several networks -------------------------------------------------------------------------------------------------

AVERAGES = {
    "timm": ({"state_dict_ema": AVERAGE, "state_dict": STATE}, "state_dict", "state_dict_ema"),
    "torchvision": (
        {
            "model_ema": {"n_averaged": Tensor(np.array(3), "Long"), **tensors(state_dict(SECOND), prefix="module.")},
            "model": STATE,
        },
        "model",
        "model_ema",
    ),
    "deep": ({"ema": {"shadow": AVERAGE}, "net": STATE}, "net", "ema.shadow"),
    "prefixes": (
        tensors(state_dict(SECOND), prefix="ema_model.") | tensors(state_dict(FIRST), prefix="model."),
        "model",
        "ema_model",
    ),
    "top level": ({**STATE, "ema": AVERAGE}, "", "ema"),
}


@pytest.mark.parametrize("case", [name for name in AVERAGES if name != "top level"])
def test_the_plain_network_is_taken_before_its_average_and_both_can_be_chosen(write, case):
    value, plain, average = AVERAGES[case]
    path = write("w.pth", checkpoint(value))
    again = weights.load(path)
    assert_same_params(again.params, FIRST.params)
    assert (again.provenance[TAKEN], again.provenance[OTHERS]) == (plain, average)
    assert_same_params(weights.load(path, state_dict=average).params, SECOND.params)
    assert_same_params(weights.load(path, state_dict=plain).params, FIRST.params)
    refused(path, f'state_dict: unknown value "modle"; the file has {plain}, {average}', state_dict="modle")


def test_what_does_not_fit_is_passed_over(write):
    other = {
        "features.0.weight": Tensor(np.zeros((64, 3, 3, 3), np.float32)),
        "fc.weight": Tensor(np.ones((2, 2), np.float32)),
    }
    again = weights.load(write("w.pth", checkpoint({"state_dict": other, "student": STATE})))
    assert_same_params(again.params, FIRST.params)
    assert again.provenance[TAKEN] == "student" and OTHERS not in again.provenance


def test_files_with_one_network_have_none_to_choose(write, tmp_path):
    refused(write("w.pth", checkpoint(STATE)), "has only one, without a name", state_dict="model")
    weights.save(tmp_path / "w.safetensors", FIRST)
    refused(tmp_path / "w.safetensors", "holds one network only; leave --state-dict out", state_dict="model")


def test_the_commands_say_which_was_taken(write, tmp_path, capsys):
    path, out = write("w.pth", checkpoint(AVERAGES["timm"][0])), tmp_path / "out.safetensors"
    assert main(["convert", str(path), str(out)]) == 0
    note = f"note: of {path}, state_dict is read; --state-dict chooses state_dict_ema\n"
    assert note in capsys.readouterr().err
    assert main(["convert", str(path), str(out), "--state-dict", "state_dict_ema"]) == 0
    assert "--state-dict" not in capsys.readouterr().err
    assert_same_params(weights.load(out).params, SECOND.params)
    assert main(["convert", str(path), str(out), "--state-dict", "nothing"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_training_says_once_from_which_network_of_a_checkpoint_it_starts(write, tmp_path, capsys):
    path, converted = write("w.pth", checkpoint(AVERAGES["timm"][0])), tmp_path / "average.safetensors"
    for _ in range(2):
        assert_same_params(transfer.load(ModelSettings(init_from=str(path))).params, FIRST.params)
    note = f"note: of {path}, state_dict is read; `convert --state-dict` makes a file of state_dict_ema\n"
    assert capsys.readouterr().err == note
    weights.save(converted, weights.load(path, state_dict="state_dict_ema"))
    assert_same_params(transfer.load(ModelSettings(init_from=str(converted))).params, SECOND.params)
    assert capsys.readouterr().err == ""


# -- hostile files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def evil(tmp_path):
    """Calls that would make a file, in every way that a pickle knows, and that file."""
    target = tmp_path / "executed"
    subprocess.run(["touch", target], check=True)
    target.unlink()
    system, command = Name("os", "system"), f"touch {target}"
    ways = [
        Call(system, (command,)),
        Call(system, (command,), is_new=True),
        Call(Name("builtins", "eval"), (f"__import__('os').system('{command}')",)),
        Call(Name("torch._tensor", "_rebuild_from_type_v2"), (system, Name("torch", "Tensor"), (command,), {})),
        Call(Call(Name("builtins", "getattr"), (Name("os", "path"), "join")), (command,)),
        new("os", "system", command=command),
        system,
    ]
    return ways, target


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_beside_the_state_dict_is_skipped_and_inside_it_is_refused(write, evil, legacy):
    ways, target = evil
    for call in ways:
        beside = {"args": call, "list": [call, {call: 1} if isinstance(call, Name) else call], "state_dict": STATE}
        assert_same_params(weights.load(write("w.pth", checkpoint(beside, legacy=legacy))).params, FIRST.params)
        for inside in (
            {**STATE, "features.0.bias": call},
            {**STATE, "total_ops": call},
            {"features.0.weight": call},
            {"state_dict": {**STATE, "x": call}, "model_ema": AVERAGE},
            call,
        ):
            refused(write("w.pth", checkpoint(inside, legacy=legacy)), "refused: ")
    assert not target.exists()


@pytest.mark.parametrize(
    ("surplus", "message"),
    [
        ({"optimizer": {}}, "optimizer is neither a tensor nor a number"),
        ({7: 3}, "7 is neither"),
        ({(1, 2): 3}, "a key that is no name is neither"),
        ({"fc.weight": Tensor(np.ones((2, 2), np.float32))}, "surplus fc.weight"),
        ({"features.0.bias": Tensor(np.arange(4), "Long")}, "type I64 is not allowed"),
        ({"features.0.bias": Tensor(np.zeros((0,), np.float32))}, "shape 0 is not"),
    ],
)
def test_a_state_dict_holds_tensors_only(write, surplus, message):
    refused(write("w.pth", checkpoint({**STATE, **surplus})), message)


def test_values_that_contain_themselves_are_read(write):
    value = {"state_dict": STATE, "list": []}
    value["list"].append(value)
    assert_same_params(weights.load(write("w.pth", checkpoint(value))).params, FIRST.params)
