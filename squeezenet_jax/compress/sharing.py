"""Pruning by magnitude and weight sharing by k-means, layer by layer, without data and without training again.

Deep Compression (arXiv 1510.00149), Sections 2 and 3: the smallest weights are removed, and those that are kept share
the centroids of k-means, which begins with centroids at equal distances between the smallest and the largest weight.
Letters: N kept weights in order, K centroids.
"""

import math

import numpy as np

from squeezenet_jax.weights.quantized import QuantizedLayer

MAX_ROUNDS = 100


def prune(kernel: np.ndarray, density: float) -> np.ndarray:
    """The kernel with all but the largest `density` of its weights set to 0; equally large ones in their order."""
    kept = max(1, round(density * kernel.size))
    if np.count_nonzero(kernel) <= kept:
        return kernel
    pruned = kernel.ravel().copy()
    pruned[np.argsort(-np.abs(pruned), kind="stable")[kept:]] = 0
    return pruned.reshape(kernel.shape)


def share(name: str, kernel_HWIO: np.ndarray, bias_O: np.ndarray, bits: int) -> QuantizedLayer:
    """The layer with at most 2**bits different weights, 0 being one of them; exact where it has no more already."""
    weight_N = np.sort(kernel_HWIO[kernel_HWIO != 0])
    centroid_K = np.unique(weight_N)
    if len(centroid_K) >= 1 << bits:
        centroid_K = _kmeans(weight_N.astype(np.float64), (1 << bits) - 1)
    values = np.unique(np.append(centroid_K.astype(np.float32), np.float32(0)))
    values = np.append(np.float32(0), values[values != 0])
    code = np.where(kernel_HWIO == 0, 0, _nearest(values[1:].astype(np.float64), kernel_HWIO) + 1)
    return QuantizedLayer(name, code.astype(np.int16), values, np.ascontiguousarray(bias_O))


def by_kmeans(kernel: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """(kernel of shared weights, codes: 0 for a weight of 0, else the number of its centroid), as `share` has them."""
    layer = share("", kernel, np.zeros(kernel.shape[-1], np.float32), bits)
    return layer.kernel_HWIO, layer.code_HWIO


def by_steps(kernel: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """(step * q, q): the weights as multiples of one step, with integers |q| < 2**(bits - 1); 0 stays 0.

    Of the steps from a fiftieth of the largest possible one to that, in equal ratios, the one with the least squared
    error; a weight that is not 0 may become 0.
    """
    most = (1 << bits - 1) - 1
    largest = float(np.abs(kernel).max()) / most
    if largest == 0:
        return kernel, np.zeros(kernel.shape, np.int16)
    best = min(
        (largest * 50 ** -(i / 49) for i in range(50)),
        key=lambda step: float(np.square(kernel - step * _rounded(kernel, step, most), dtype=np.float64).sum()),
    )
    q = _rounded(kernel, best, most)
    return np.float32(best) * q.astype(np.float32), q


def _rounded(kernel: np.ndarray, step: float, most: int) -> np.ndarray:
    return np.clip(np.rint(kernel / step), -most, most).astype(np.int16)


def _nearest(centroid_K: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.searchsorted(_middles(centroid_K), weight)


def _middles(centroid_K: np.ndarray) -> np.ndarray:
    middle: np.ndarray = (centroid_K[1:] + centroid_K[:-1]) / 2
    return middle


def _kmeans(weight_N: np.ndarray, number: int) -> np.ndarray:
    """Rising centroids. One without weights begins again at the weight that lies farthest from its own."""
    centroid_K = np.linspace(weight_N[0], weight_N[-1], number)
    sums = np.append(0, np.cumsum(weight_N))
    for _ in range(MAX_ROUNDS):
        stop_K = np.append(np.searchsorted(weight_N, _middles(centroid_K), side="right"), len(weight_N))
        count_K = np.diff(stop_K, prepend=0)
        mean_K = np.diff(sums[stop_K], prepend=0) / np.maximum(count_K, 1)
        empty = np.flatnonzero(count_K == 0)
        if len(empty):
            distance_N = np.abs(weight_N - np.repeat(centroid_K, count_K))
            mean_K[empty] = weight_N[np.argsort(-distance_N, kind="stable")[: len(empty)]]
        mean_K = np.sort(mean_K)
        if np.array_equal(mean_K, centroid_K):
            break
        centroid_K = mean_K
    return centroid_K


def relative_error(kernel: np.ndarray, stored: np.ndarray) -> float:
    """The root of the squared error's share in the squares of the weights."""
    squares = float(np.square(kernel, dtype=np.float64).sum())
    return math.sqrt(float(np.square(kernel.astype(np.float64) - stored).sum()) / squares) if squares else 0.0
