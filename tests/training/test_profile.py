"""What a step costs, read off traces as each kind of device writes them, and off a real one."""

import gzip
import json
from types import SimpleNamespace

import pytest

from squeezenet_jax.training import profile


def trace_of(planes):
    """As `jax.profiler.ProfileData` gives it; plane -> line -> [(event, nanoseconds, stats)]."""
    return SimpleNamespace(
        planes=[
            SimpleNamespace(
                name=plane,
                lines=[
                    SimpleNamespace(
                        name=line,
                        events=[
                            SimpleNamespace(name=n, duration_ns=ns, stats=list(stats.items()))
                            for n, ns, stats in events
                        ],
                    )
                    for line, events in lines.items()
                ],
            )
            for plane, lines in planes.items()
        ]
    )


def operation(name, nanoseconds):
    return (name, nanoseconds, {"hlo_op": name})


TRACES = {
    "cpu": {
        "/host:CPU": {
            "python": [("PjitFunction", 9e6, {})],
            "tf_1": [operation("conv.1", 2e6), ("end: conv.1", 5e3, {"_c": 1}), operation("while.2", 7e6)],
            "tf_2": [operation("conv.1", 3e6), operation("add", 1e6), operation("call", 4e6)],
        }
    },
    "gpu": {
        "/host:CPU": {"python": [("PjitFunction", 9e6, {})]},
        "/device:GPU:0": {
            "Stream #13(Compute)": [("sm90_conv", 2e6, {"hlo_op": "conv.1"}), ("sm90_conv", 3e6, {"hlo_op": "conv.1"})],
            "Stream #14(Memcpy)": [("loop_add", 1e6, {"hlo_op": "add"}), ("MemcpyH2D", 4e6, {})],
        },
    },
    "tpu": {
        "/device:TPU:0": {
            "Steps": [("1", 6e6, {})],
            "XLA Modules": [("jit_train", 6e6, {})],
            "XLA Ops": [
                ("%conv.1 = f32[2]{0} convolution(...)", 5e6, {"hlo_op": "not this"}),
                ("%add = f32[2]{0} add(...)", 1e6, {}),
                ("%while.2 = (s32[]) while(...)", 6e6, {}),
            ],
        }
    },
}


@pytest.mark.parametrize("kind", TRACES)
def test_operations_are_summed_over_threads_and_streams_without_those_that_contain_others(kind):
    origins = {"conv.1": "forward: fire2/squeeze1x1"}
    found = profile._summed(profile._events(trace_of(TRACES[kind])), origins)
    assert [(each.name, each.origin) for each in found] == [("conv.1", "forward: fire2/squeeze1x1"), ("add", "")]
    assert [each.seconds for each in found] == pytest.approx([5e-3, 1e-3])
    assert [each.calls for each in found] == [1 if kind == "tpu" else 2, 1]


def test_an_operation_is_named_by_its_place_in_the_network():
    for origin, expected in (
        ("jit(f)/while/body/transpose(jvp(SqueezeNet))/fire2/expand3x3/conv", "backward: fire2/expand3x3/conv"),
        ("jit(f)/jvp(SqueezeNet)/stem/conv1/conv", "forward: stem/conv1/conv"),
        ("jit(train_step)/add", "add"),
        ("", ""),
    ):
        assert profile._readable(origin) == expected


@pytest.mark.long
@pytest.mark.slow
def test_a_trace_of_real_steps_opens_and_names_the_layers(tiny, tmp_path):
    notices = []
    found = profile.profile(tiny(), 3, tmp_path / "profile", notices.append)
    assert notices == [] and found.steps == 3
    assert 0 < found.input_share < 1 and found.seconds > 0
    expensive = found.operations[:10]
    assert any("fire" in each.origin for each in expensive)
    assert [each.seconds for each in found.operations] == sorted((x.seconds for x in found.operations), reverse=True)
    assert {each.calls for each in expensive} <= {3 * n for n in range(1, 100)}  # as often in each step
    (perfetto,) = [path for path in found.files if path.name.endswith(".trace.json.gz")]
    events = json.loads(gzip.decompress(perfetto.read_bytes()))["traceEvents"]
    assert {"train", "wait for input"} <= {event.get("name") for event in events}
    again = profile.profile(tiny(), 1, tmp_path / "profile", notices.append)
    assert not {*again.files} & {*found.files}
