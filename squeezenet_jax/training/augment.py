"""What happens to a batch of uint8 images inside the compiled step: random crop, flip, normalisation, cutout, mixup.

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


def cut_out(image_BHWC: jax.Array, key_B: jax.Array, *, size: int) -> jax.Array:
    """Sets a square of `size` px to 0, the mean of normalised images (DeVries & Taylor, arXiv 1708.04552).

    Its centre is any pixel of the image, so that a part of it may lie outside. `key_B` has one key per example.
    """
    _, H, W, _ = image_BHWC.shape

    def one(image: jax.Array, key: jax.Array) -> jax.Array:
        top, left = jax.random.randint(key, (2,), 0, jnp.array((H, W))) - size // 2
        rows, columns = jnp.arange(H) - top, jnp.arange(W) - left
        inside = ((rows >= 0) & (rows < size))[:, None] & ((columns >= 0) & (columns < size))
        return jnp.where(inside[..., None], 0, image)

    return jax.vmap(one)(image_BHWC, key_B)


def mixup_shares(key_B: jax.Array, partner_mask_B: jax.Array, *, alpha: float) -> jax.Array:
    """What an image keeps of itself when it is blended with its partner: float32 [B], at least 0.5.

    The larger of l and 1 - l, l from Beta(alpha, alpha) (Zhang et al., arXiv 1710.09412): pairs are blended as there,
    and the label that an example is counted for is the one that it has most of. 1 without a partner whose mask is 1.
    """
    share_B = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(key_B)
    return jnp.where(partner_mask_B == 1, jnp.maximum(share_B, 1 - share_B), 1)


def mix(x: jax.Array, other: jax.Array, share_B: jax.Array) -> jax.Array:
    """share * x + (1 - share) * other, [B, ...]: of images, and of their labels' probabilities."""
    share = share_B.reshape(-1, *[1] * (x.ndim - 1))
    return share * x + (1 - share) * other
