"""Loss and metrics as sums over examples ("tallies"), so that they can be added up exactly and divided once.

Letters: B batch, K classes. Read next: `steps.py`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from squeezenet_jax.data.batches import Batch
from squeezenet_jax.system import devices
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.scores import label_rank

Tally = dict[str, jax.Array]  # "loss" float32 sum; "top1", "top5", "count" int32 counts
Outcomes = dict[str, jax.Array]  # of each example: "index", "label", "mask", "top" int32, "probability" float32
TOP = 5  # classes that an outcome has, or all where there are fewer


def tally(logits_BK: jax.Array, label_B: jax.Array, mask_B: jax.Array, target_BK: jax.Array | None = None) -> Tally:
    """Sums over the examples whose mask is 1 of cross-entropy, top-1 hits, top-5 hits, and their number.

    Cross-entropy is that of the labels or, where there are any, of the `target_BK`, probabilities. Of logits that are
    all equal it is ln K, whatever the targets.
    """
    if target_BK is None:
        loss_B = optax.softmax_cross_entropy_with_integer_labels(logits_BK, label_B)
    else:
        loss_B = optax.softmax_cross_entropy(logits_BK, target_BK)
    rank_B = label_rank(logits_BK, label_B)
    mask_B = mask_B.astype(jnp.int32)
    return {
        "loss": jnp.sum(jnp.where(mask_B == 1, loss_B, 0.0)),
        "top1": jnp.sum(mask_B * (rank_B < 1)),
        "top5": jnp.sum(mask_B * (rank_B < 5)),
        "count": jnp.sum(mask_B),
    }


def soft_labels(label_B: jax.Array, num_classes: int, *, smoothing: float) -> jax.Array:
    """Probabilities [B, K]: 1 - smoothing for the label, and `smoothing` spread over all K classes, its own included.

    Szegedy et al., arXiv 1512.00567, Sec. 7.
    """
    return (1 - smoothing) * jax.nn.one_hot(label_B, num_classes) + smoothing / num_classes


def outcomes(logits_BK: jax.Array, batch: Batch) -> Outcomes:
    """What becomes of each example: its best classes in `label_rank`'s order, and its label's probability."""
    own = jnp.take_along_axis(jax.nn.softmax(logits_BK), batch["label"][:, None], axis=-1)
    sortable_BK = jnp.where(logits_BK == 0, 0.0, logits_BK)  # top_k puts -0.0 behind 0.0
    _, top = jax.lax.top_k(sortable_BK, min(TOP, logits_BK.shape[-1]))
    given = {name: batch[name] for name in ("index", "label", "mask")}
    return given | {"top": top, "probability": own[:, 0]}


def total(tallies: Sequence[Tally]) -> dict[str, float]:
    """Fetches tallies from the devices and adds them up in float64, in which counts are exact."""
    fetched = jax.device_get(tallies)
    return {name: float(sum(np.float64(tally[name]) for tally in fetched)) for name in fetched[0]}


def means(total: Mapping[str, float]) -> dict[str, float]:
    """Mean loss and accuracies (fractions) of summed tallies, with the count they are over."""
    count = int(total["count"])
    if count == 0:
        raise UserError("none of the images could be read")
    return {name: float(total[name]) / count for name in ("loss", "top1", "top5")} | {"count": count}


def evaluate(tally_of: Callable[[Batch], Tally], batches: Iterable[Batch]) -> dict[str, float]:
    """Exact `means` over all batches of a split: an example counts once or, if its mask is 0, not at all.

    `tally_of` may return before its tally is computed. Tallies are added up exactly and divided once, at the end.
    """
    tallies, pace = [], devices.Pace()
    for batch in batches:
        tallies.append(tally_of(batch))
        pace.add(tallies[-1])
    return means(total(tallies))
