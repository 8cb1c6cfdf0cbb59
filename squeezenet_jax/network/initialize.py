"""Parameters at step 0: drawn by the network's initialiser, or scaled by LSUV.

Why it matters: without normalisation layers the initialiser decides whether a variant trains at all, and a bypass
makes the signal grow where a plain network loses it. LSUV gives every variant the same scale in every layer, so that
an ablation compares bypasses and not initialisers. A layer with a norm needs none of it: its output has a scale of its
own, and what a smaller kernel changes is that a step of the same length turns it further.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

Params = dict[str, Any]


def output_stds(model: nn.Module, variables: Params, image_BHWC: jax.Array) -> dict[str, jax.Array]:
    """Standard deviation of W * x + b, or W * x where a pool comes before b, by convolution, on normalised images."""
    everything = jnp.ones(len(image_BHWC))  # batch normalisation is by this batch, as in training
    _, captured = model.apply(variables, image_BHWC, mask_B=everything, mutable=["intermediates", "batch_stats"])
    outputs = flax.traverse_util.flatten_dict(captured["intermediates"])
    return {"/".join(path[:-1]): jnp.std(output.astype(jnp.float32)) for path, (output,) in outputs.items()}


def lsuv(stds: Callable[[Params], dict[str, jax.Array]], params: Params, layers: Sequence[str], std: float) -> Params:
    """Layer-sequential unit-variance initialisation (Mishkin & Matas, arXiv 1511.06422).

    Goes through the convolutions named in `layers` ("fire2/squeeze1x1", in the order of computation) and divides each
    kernel by what makes the standard deviation of its output equal to `std`; `stds` is `output_stds` on one batch. As
    biases are 0, output is linear in the kernel and one division per layer is exact. A layer whose output is constant
    (all of its inputs are dead) is left as it is.
    """
    params = jax.device_get(params)  # on the devices each kernel's shape would be a program to compile
    for layer in layers:
        now = float(jax.device_get(stds(params)[layer]))
        if now > 0:
            params = _scale_kernel(params, layer.split("/"), std / now)
    return params


def _scale_kernel(params: Params, path: Sequence[str], scale: float) -> Params:
    name, *rest = path
    inner = params[name]
    changed = _scale_kernel(inner, rest, scale) if rest else inner | {"kernel": inner["kernel"] * scale}
    return params | {name: changed}
