r"""Rounding a convolution's weights to multiples of a step so that the errors make up for each other.

For each output channel, with w its weights that are not 0, M the second moments of what they multiply and q the rounded
weights, the error of the output is

    (w - q)' M (w - q) = |R (w - q)|^2 = sum over i of R_ii^2 (c_i - q_i)^2,
    c_i = w_i + sum over j > i of R_ij (w_j - q_j) / R_ii,

with M = R' R, R upper triangular (Cholesky). From the last weight to the first, c_i is what w_i has to be to make up
for the errors of the weights before it, and q_i is c_i rounded. The weights with the largest moments come first: what
they leave can still be made up for. This is the compensation of optimal brain compression (2208.11580) and GPTQ
(2210.17323), written as Babai's nearest plane: with Cholesky's factor of M itself no inverse is needed. Unlike in GPTQ,
every output channel has its own weights that are kept, so its own M; the rows are computed side by side.

Letters: O output channels, D = H W I weights each, n of them kept, at most.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from squeezenet_jax.system.cores import cores

DAMPING = 0.03  # of M's mean diagonal, added to its diagonal: what few images say about rare directions is not trusted
CHUNK_VALUES = 1 << 23  # of the rows' matrices at a time, on each core: 64 MiB
MAX_CODE = 255  # the largest multiple of the step


def damped(moment_DD: np.ndarray) -> np.ndarray:
    """M + damping; the identity where M is 0, as of an input that is always 0."""
    mean = float(np.diag(moment_DD).mean()) or 1.0
    result: np.ndarray = moment_DD + DAMPING * mean * np.eye(len(moment_DD))
    return result


def compensated(
    weight_OD: np.ndarray, moment_DD: np.ndarray, step: float, slope_OD: np.ndarray | None = None
) -> np.ndarray:
    """int64 [O, D]: the weights as multiples of the step. What is 0 stays 0.

    With `slope_OD`, l in each row, (w - q)' M (w - q) + 2 l' (w - q) is the error: w + inv(M) l is rounded, restricted
    to the weights that are not 0.
    """
    moment_DD = damped(moment_DD)
    by_moment_D = np.argsort(np.diag(moment_DD), kind="stable")
    place_D = np.argsort(by_moment_D)
    free_OD = weight_OD != 0
    most = int(free_OD.sum(1).max(initial=0))
    # Of each row the free weights, by rising moment; then, to fill the row up, others, which are held at 0.
    index_On = np.argsort(np.where(free_OD, place_D, len(place_D) + place_D), axis=1, kind="stable")[:, :most]
    code_OD = np.zeros(weight_OD.shape, np.int64)
    rows = max(1, CHUNK_VALUES // max(1, most * most))

    def fill(start: int) -> None:
        chunk = slice(start, start + rows)
        index = index_On[chunk]
        free = np.take_along_axis(free_OD[chunk], index, 1)
        weight = np.take_along_axis(weight_OD[chunk], index, 1)
        slope = np.zeros_like(weight) if slope_OD is None else np.take_along_axis(slope_OD[chunk], index, 1) * free
        if free_OD.all():  # all rows have the same matrix
            matrix = moment_DD[np.ix_(by_moment_D, by_moment_D)][None]
            weight = weight + np.linalg.solve(matrix[0], slope.T).T
        else:
            matrix = _of_free(moment_DD, index, free)
            weight = weight + np.linalg.solve(matrix, slope[..., None])[..., 0]
        factor = np.linalg.cholesky(matrix).transpose(0, 2, 1)
        np.put_along_axis(code_OD[chunk], index, _nearest_plane(weight, free, factor, step), 1)

    # Thousands of small matrices: BLAS's threads would wait for each other at each. Chunks are the same on any machine.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(cores()) as pool:
        list(pool.map(fill, range(0, len(weight_OD) if most else 0, rows)))
    return code_OD


def _of_free(moment_DD: np.ndarray, index_On: np.ndarray, free_On: np.ndarray) -> np.ndarray:
    """[O, n, n] M of each row's free weights; the identity for the others."""
    matrix_Onn: np.ndarray = moment_DD[index_On[:, :, None], index_On[:, None, :]]
    matrix_Onn *= free_On[:, :, None] & free_On[:, None, :]
    diagonal = np.arange(index_On.shape[1])
    matrix_Onn[:, diagonal, diagonal] += ~free_On
    return matrix_Onn


def _nearest_plane(weight_On: np.ndarray, free_On: np.ndarray, factor_Onn: np.ndarray, step: float) -> np.ndarray:
    error_On = np.zeros(weight_On.shape)
    code_On = np.zeros(weight_On.shape, np.int64)
    for i in range(weight_On.shape[1] - 1, -1, -1):
        diagonal = factor_Onn[:, i, i]
        later = factor_Onn[:, i, i + 1 :] / diagonal[:, None]
        target = weight_On[:, i] + np.sum(later * error_On[:, i + 1 :], axis=1)
        code = np.clip(np.rint(target / step), -MAX_CODE, MAX_CODE).astype(np.int64)
        code_On[:, i] = np.where(free_On[:, i], code, 0)
        error_On[:, i] = weight_On[:, i] - code_On[:, i] * step
    return code_On
