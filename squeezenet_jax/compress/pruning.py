"""How many weights of each layer pruning keeps, and when.

Magnitude pruning (arXiv 1510.00149, Sec. 2): a layer's smallest weights are removed. Read next: `sharing.py`.
"""

from collections.abc import Mapping

import numpy as np

from squeezenet_jax.system.errors import check_choice

POLICIES = ("uniform", "global", "table1")
# The share of the weights that SqueezeNet's own compression keeps (arXiv 1602.07360, Table 1, columns "1x1 sparsity" to
# "3x3 sparsity"; of fire8's and fire9's 3x3 the published file has 30 %). Layers that are not here keep all.
TABLE_1 = {
    **{f"fire{number}/expand3x3": 0.33 for number in range(2, 8)},
    "fire6/expand1x1": 0.5,
    "fire7/squeeze1x1": 0.5,
    "fire8/expand1x1": 0.5,
    "fire8/expand3x3": 0.3,
    "fire9/squeeze1x1": 0.5,
    "fire9/expand3x3": 0.3,
    "conv10": 0.2,
}
DENSE = "conv1"  # it sees the pixels and has one weight in a hundred; Table 1 keeps all of it


def densities(
    policy: str, density: float, kernels: Mapping[str, np.ndarray], progress: float = 1.0
) -> dict[str, float]:
    """The share of its weights that each layer keeps; conv1 keeps all.

    Arguments:
      policy: "uniform": `density` of each layer; "global": the largest weights of all layers together; "table1": what
        SqueezeNet's authors kept, whatever the density.
      density: the share that is kept of all weights but conv1's.
      kernels: by layer.
      progress: the share of a gradual pruning that is done.
    """
    if check_choice("policy", policy, POLICIES) == "table1":
        return {name: scheduled(TABLE_1.get(name, 1.0), progress) for name in kernels}
    density = scheduled(density, progress)
    prunable = {name: np.abs(kernel) for name, kernel in kernels.items() if name != DENSE}
    if policy == "uniform" or not prunable:
        return {name: density if name in prunable else 1.0 for name in kernels}
    sizes = np.concatenate([kernel.ravel() for kernel in prunable.values()])
    kept = max(1, round(density * sizes.size))
    smallest = np.partition(sizes, sizes.size - kept)[sizes.size - kept]
    return {name: float(np.mean(prunable[name] >= smallest)) if name in prunable else 1.0 for name in kernels}


def scheduled(density: float, progress: float) -> float:
    """The density at a share `progress` of a gradual pruning: 1 - (1 - density) (1 - (1 - progress)^3).

    Fast at first, when there is much to spare (Zhu & Gupta, arXiv 1710.01878, Eq. 1).
    """
    return 1 - (1 - density) * (1 - (1 - progress) ** 3)
