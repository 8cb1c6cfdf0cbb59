"""Logits of image files. Letters: B batch, N images, H, W, C, K classes."""

import math
from collections.abc import Callable

import numpy as np

from squeezenet_jax.weights import Weights

Forward = Callable[[np.ndarray], np.ndarray]

# Winograd's convolutions take 0.5 to 1.7 s longer to compile, and save 0.4 to 1.8 ms an image.
MANY_IMAGES = 1000


def compile_forward(weights: Weights, batch_size: int, num_images: float = math.inf) -> Forward:
    """The network as a function float32 [B, H, W, C] -> float32 [B, K] for up to `batch_size` images.

    One program: smaller batches are padded to it. For few images, `num_images` in all, it is the one that is compiled
    sooner. Raises `UserError` where the devices that are asked for are not there.
    """
    import jax  # here, for whoever takes another engine
    import jax.numpy as jnp

    from squeezenet_jax.network import lowering
    from squeezenet_jax.network.model import SqueezeNet
    from squeezenet_jax.system import devices

    devices.available()
    model = SqueezeNet(weights.arch, weights.num_classes)
    size = weights.preprocessing.crop
    image = jax.ShapeDtypeStruct((batch_size, size, size, weights.channels), np.float32)
    variables = weights.variables  # constants of the program: XLA transforms and slices kernels once
    parts = lowering.num_microbatches(weights.arch, batch_size, size, training=False)

    def logits(image_BHWC: jax.Array) -> jax.Array:
        image_by_part = image_BHWC.reshape(parts, -1, *image_BHWC.shape[1:])
        logits_by_part = jax.lax.map(lambda part: model.apply(variables, part), image_by_part)
        return jnp.reshape(logits_by_part, (batch_size, -1))

    with lowering.inference(many_images=num_images >= MANY_IMAGES):
        compiled = jax.jit(logits).lower(image).compile(lowering.compiler_options())

    def forward(image_BHWC: np.ndarray) -> np.ndarray:
        count = len(image_BHWC)
        if count < batch_size:
            image_BHWC = np.pad(image_BHWC, [(0, batch_size - count), (0, 0), (0, 0), (0, 0)])
        return np.asarray(compiled(image_BHWC))[:count]

    return forward
