r"""How much a network's prediction changes with the weights of each convolution, measured on images without labels.

For a small change d of the parameters, KL(p || p_d) = 1/2 d' F d, F being the Fisher information: the mean over images,
and over classes y drawn from the network's own prediction p, of g g' with g the gradient of log p(y). Instead of
drawing classes, the gradient of v'logits is taken with v = B e, e random signs and B B' = diag(p) - p p', which is the
covariance of the gradient of log p(y) over the logits: the same mean with less variance.

Of F, two things are kept for each convolution y = W x + b (a position being one of its outputs P x Q):

    s, of every position   the sum over O of the squared gradient by y: what an error there costs
    trace                  the sum over W of its squared gradient: the trace of W's block of F

If errors of different positions were independent, the trace would be the sum of s |x|^2. A change of a weight is an
error at all positions at once, so it is several times that, and by another factor in every layer (`calibration.py`).

Letters: N images, B of a batch, P, Q, O of a convolution's output, D weights of one output channel, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from squeezenet_jax.compress import activations
from squeezenet_jax.network.trace import Layer

BATCH_SIZE = 5
DRAWS = 4  # of the signs, for each image


class Sensitivity(NamedTuple):
    position_NPQ: np.ndarray  # float32, s
    trace: float


def measure(layers: Sequence[Layer], flat: Mapping[str, np.ndarray], image_NHWC: np.ndarray) -> dict[str, Sensitivity]:
    """Of every convolution, under the parameters "conv1/kernel", "conv1/bias", ...; the same whenever it is asked."""
    convolutions = [layer for layer in layers if layer.kind == "conv"]
    parts = _program(layers, flat)
    position: dict[str, list[np.ndarray]] = {layer.name: [] for layer in convolutions}
    trace = dict.fromkeys(position, 0.0)
    for number, batch in enumerate(activations.batches(len(image_NHWC), BATCH_SIZE)):
        draws = [parts(image_NHWC[batch], key) for key in jax.random.split(jax.random.key(number), DRAWS)]
        for name in position:
            position[name].append(np.mean([np.asarray(draw[name][0]) for draw in draws], axis=0))
            trace[name] += sum(float(draw[name][1]) for draw in draws) / (DRAWS * len(image_NHWC))
    return {name: Sensitivity(np.concatenate(position[name]), trace[name]) for name in position}


def _program(
    layers: Sequence[Layer], flat: Mapping[str, np.ndarray]
) -> Callable[[np.ndarray, Array], dict[str, tuple[Array, Array]]]:
    """(images [B, H, W, C], key) -> {name: (s [B, P, Q], traces summed over B)}, by one draw of signs."""
    convolutions = [layer for layer in layers if layer.kind == "conv"]

    def forward(change: dict[str, Array], image_BHWC: Array) -> tuple[Array, dict[str, Array]]:
        """Logits where `change` is added to the convolutions' outputs, and the convolutions' inputs."""
        outputs, read = {layers[0].inputs[0]: image_BHWC}, {}
        for layer in layers:
            inputs = [outputs[name] for name in layer.inputs]
            y = activations.pre_activation(layer, inputs, flat)
            if layer.kind == "conv":
                y, read[layer.name] = y + change[layer.name], inputs[0]
            outputs[layer.name] = activations.activation(layer, y)
        return outputs[layers[-1].name], read

    def parts(image_BHWC: Array, key: Array) -> dict[str, tuple[Array, Array]]:
        size = len(image_BHWC)
        nothing = {layer.name: jnp.zeros((size, *layer.shape)) for layer in convolutions}
        logits_BK, backward, read = jax.vjp(lambda change: forward(change, image_BHWC), nothing, has_aux=True)
        p_BK = jax.nn.softmax(logits_BK)

        signed_BK = jnp.sqrt(p_BK) * jax.random.rademacher(key, p_BK.shape, jnp.float32)
        (gradient,) = backward(signed_BK - p_BK * signed_BK.sum(1, keepdims=True))
        return {layer.name: _parts(layer, read[layer.name], gradient[layer.name]) for layer in convolutions}

    return jax.jit(parts)


def _parts(layer: Layer, x_BHWC: Array, gradient_BPQO: Array) -> tuple[Array, Array]:
    windows_BPQD = activations.windows(layer, x_BHWC)
    kernel_BDO = jnp.einsum("bpqd,bpqo->bdo", windows_BPQD, gradient_BPQO)
    return jnp.sum(gradient_BPQO**2, axis=-1), jnp.sum(kernel_BDO**2)
