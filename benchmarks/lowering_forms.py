"""What each of `network/lowering`'s special forms gains on a CPU: training and inference without it, in turns with all.

    python benchmarks/lowering_forms.py [--only train_v1.1_224_b16,infer_v1.1_224_b1] [--forms pool,bias] [--out FILE]

(no PyTorch.) Workloads, processes, turns and columns are those of `compare_pytorch.py`. Each form is taken away by
itself; the others stay, as far as they can without it: 1x1 kernels are no products without `pointwise`, so neither are
their gradients. A line's gain is the time without the form over the time with all of them in the same round: above 1,
the form gains. Before anything is timed, each must compute the logits of all and, after three steps, the same weights.
Batch normalisation, which none of these networks has, is left out.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

sys.path.insert(0, str(Path(__file__).parents[1]))

from squeezenet_jax.network import lowering
from squeezenet_jax.network.lowering import activation, convolution, eigen, plain, pooling, products, winograd

TIMED = (
    *("train_v1.0_224_b16", "train_v1.1_224_b16", "train_small_32_b256", "train_small_16_b32"),
    *("infer_v1.0_224_b1", "infer_v1.1_224_b1", "infer_v1.1_224_b32"),
)
AT_ONCE = 4  # forms that are measured beside the same turns of all; each is a process with a GB


def lax_pool(x_BHWC: Array, ceil: bool, size: tuple[int, int]) -> Array:
    pads = ((0, 0), *(pooling.padding(n, ceil) for n in size), (0, 0))
    y: Array = lax.reduce_window(x_BHWC, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pads)
    return y


def add_bias(x_BPQO: Array, bias_O: Array | None) -> Array:
    return x_BPQO if bias_O is None else x_BPQO + bias_O


def pointwise_conv(parts: Any, kernel_CO: Array) -> Array:
    return eigen.eigen_conv(jnp.concatenate(parts, axis=-1), kernel_CO[None, None], (1, 1), ((0, 0), (0, 0)))


# By name, what is put in the form's place: (module, name there, value).
FORMS: dict[str, list[tuple[Any, str, Any]]] = {
    "pool": [(pooling, "max_pool", lax_pool)],
    "early_pools": [(lowering, "pools_early", lambda arch: False)],
    "relu": [(activation, "CPU", activation.PLAIN)],
    "channels_apart": [(lowering, "concatenate", lambda *parts: lowering.join(parts))],
    "pointwise": [(products, "pointwise_conv", pointwise_conv)],
    "narrow_first": [(module, "matmul", jnp.matmul) for module in (products, winograd)],
    "bias": [(module, "add_bias", add_bias) for module in (products, convolution, winograd)],
    "eigen_gradients": [(convolution, "eigen_conv", plain.lax_conv)],
    "stem_windows": [(convolution, "MOST_PATCH", 0)],
    "winograd": [(lowering, "WINOGRAD_MACS", dict.fromkeys(lowering.WINOGRAD_MACS, math.inf))],
    "outlined_windows": [
        (winograd, name, getattr(winograd, name).__wrapped__) for name in ("_select_windows", "_add_windows")
    ],
    "parts": [(lowering, "num_microbatches", lambda *_, training: 1)],
    "options": [(lowering, "compiler_options", dict)],
}


def take_away(form: str) -> None:
    """From this process."""
    for module, name, value in FORMS[form]:
        assert hasattr(module, name)
        setattr(module, name, value)


def main() -> None:
    import compare_pytorch as compare
    from contenders import OURS, WITHOUT

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME,...", default=",".join(TIMED), help="workloads (default: %(default)s)")
    parser.add_argument("--forms", metavar="NAME,...", default=",".join(FORMS), help="default: %(default)s")
    parser.add_argument("--launches", type=int, default=3, help="processes of each side (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each process (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of each side (default: %(default)s)")
    parser.add_argument("--quiet", type=float, default=0.2, help="as in compare_pytorch.py (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write every turn and the versions to FILE")
    args = parser.parse_args()
    names, forms = args.only.split(","), args.forms.split(",")
    compare.check_names(parser, names, TIMED)
    for form in forms:
        if form not in FORMS:
            parser.error(f"--forms: {form} is not one of {', '.join(FORMS)}")
    starts = range(0, len(forms), AT_ONCE)
    groups = [[OURS, *(WITHOUT + form for form in forms[start : start + AT_ONCE])] for start in starts]
    compare.prepare(args.threads)
    for sides in groups:
        compare.check_equal(["infer_v1.1_224_b2", "infer_small_16_b2"], sides, args.threads)
    compare.print_head("gain")
    rows: list[dict[str, Any]] = []
    results: dict[str, Any] = {}
    for name in names:
        for sides in groups:
            key = ", ".join([name, *sides[1:]])
            results[key] = compare.measure(name, sides, args)
            rows += (new := list(compare.summarise(name, results[key])))
            compare.print_rows(new)
            if args.out:
                compare.write(args, rows, results)


if __name__ == "__main__":
    main()
