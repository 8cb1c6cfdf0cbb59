"""What happens to a batch of uint8 images inside the compiled step: random crop, flip, normalisation.

Letters: B batch, H, W, C.
"""

import jax
import jax.numpy as jnp


def normalize(image_BHWC: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """uint8 [B, H, W, C] -> float32 (x / 255 - mean) / std; `mean` and `std` have one value per channel, or one."""
    return (image_BHWC.astype(jnp.float32) / 255.0 - jnp.asarray(mean)) / jnp.asarray(std)


def crop_and_flip(image_BHWC: jax.Array, key_B: jax.Array, *, padding: int, flip: bool) -> jax.Array:
    """Crops each image at a random place after zero-padding it by `padding` px, and mirrors half of them if `flip`.

    `key_B` has one key per example, so that an example's augmentation does not depend on its place in the batch.
    """
    if padding == 0 and not flip:
        return image_BHWC
    _, H, W, C = image_BHWC.shape
    padded = jnp.pad(image_BHWC, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def one(image: jax.Array, key: jax.Array) -> jax.Array:
        crop_key, flip_key = jax.random.split(key)
        top, left = jax.random.randint(crop_key, (2,), 0, 2 * padding + 1)
        image = jax.lax.dynamic_slice(image, (top, left, 0), (H, W, C))
        return jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image) if flip else image

    return jax.vmap(one)(padded, key_B)
