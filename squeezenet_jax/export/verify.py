"""Proof, at export time, that the written file computes what the flax model computes.

Every exporter's file is read back by an independent runtime and run on random images at several batch sizes; none that
differs is written. A difference is relative to the largest logit of the reference: d = max|y - r| / max|r|.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from squeezenet_jax.export.network import Network
from squeezenet_jax.system.errors import UserError

# Float32 in another summation order gives 1e-7 to 1e-5 here; a wrong padding, rounding or channel order 1e-2 and more.
TOLERANCE = 1e-4
COARSE = 7  # random squares per image side

Run = Callable[[np.ndarray], np.ndarray]  # image_BHWC -> logits_BK


@dataclasses.dataclass(frozen=True)
class Difference:
    """Largest difference between file and flax model over all images, classes and batch sizes."""

    absolute: float
    relative: float
    batches: tuple[int, ...]

    def __str__(self) -> str:
        sizes = " and ".join(map(str, self.batches))
        return (
            f"largest difference from the flax model at batch {sizes}: {self.absolute:.1e}, "
            f"relative to the largest logit {self.relative:.1e} (allowed: {TOLERANCE:.0e})"
        )


def sample_images(network: Network, count: int, seed: int = 0) -> np.ndarray:
    """Random images, float32 [count, H, W, C]: squares of random colour with noise on them.

    Noise alone would not do: the last layer averages over the image, so all white noise looks alike to the network.
    """
    rng = np.random.default_rng(seed)
    size = network.image_size
    coarse = rng.normal(size=(count, COARSE, COARSE, network.channels))
    square = np.arange(size) * COARSE // size
    noise = rng.normal(scale=0.5, size=(count, size, size, network.channels))
    return (network.input_std * (coarse[:, square][:, :, square] + noise)).astype(np.float32)


def verify(network: Network, run: Run, batches: Sequence[int]) -> Difference:
    """Compares `run` with the flax model on other images at each batch size.

    Raises `UserError` where they differ by more than `TOLERANCE`, where shapes differ, and where the flax model's own
    logits do not depend on the image (NaN included), since then nothing can be shown.
    """
    images = sample_images(network, sum(batches))
    expected = network.reference(images)  # of all images at once: one compilation
    largest, variation = float(np.abs(expected).max()), float(np.ptp(expected, axis=0).max())
    if not variation > TOLERANCE * largest:
        raise UserError(
            "cannot verify the export: the flax model's own logits do not depend on the image "
            f"(they vary by {variation:.1e}, the largest is {largest:.1e}); are these trained weights?"
        )
    absolute = 0.0
    ends = np.cumsum(batches)
    for start, end in zip(ends - batches, ends, strict=True):
        actual = run(images[start:end])
        if actual.shape != expected[start:end].shape:
            raise UserError(f"the exported file gives logits {actual.shape} instead of {expected[start:end].shape}")
        absolute = float(np.maximum(absolute, np.abs(actual - expected[start:end]).max()))  # NaN stays NaN
    difference = Difference(absolute, absolute / largest, tuple(batches))
    if not difference.relative <= TOLERANCE:
        raise UserError(f"the exported file computes something else: {difference}; no file was written")
    return difference
