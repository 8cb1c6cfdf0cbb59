"""Learning-rate schedules and the optimiser, from `OptimizerSettings`, with optax.

One more of either is one more entry of a table here, and its name in `settings.py`.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import optax

from squeezenet_jax.settings import OptimizerSettings

Decayed = Callable[[Any], Any]  # parameters -> for each, whether weight decay applies to it

# From the peak on, over a number of steps.
SCHEDULES: Mapping[str, Callable[[OptimizerSettings, int], optax.Schedule]] = {
    "cosine": lambda s, steps: optax.cosine_decay_schedule(s.peak_lr, steps),
    "linear": lambda s, steps: optax.polynomial_schedule(s.peak_lr, 0.0, 1, steps),
    "poly": lambda s, steps: optax.polynomial_schedule(s.peak_lr, 0.0, s.poly_power, steps),
    "constant": lambda s, steps: optax.constant_schedule(s.peak_lr),
}

OPTIMIZERS: Mapping[str, Callable[[OptimizerSettings, optax.Schedule, Decayed], optax.GradientTransformation]] = {
    # Weight decay is added to the gradient, as in Caffe.
    "sgd": lambda s, rate, decayed: optax.chain(
        optax.add_decayed_weights(s.weight_decay, mask=decayed),
        optax.sgd(rate, momentum=s.momentum),
    ),
    "adamw": lambda s, rate, decayed: optax.adamw(
        rate, b1=s.momentum, b2=s.beta2, weight_decay=s.weight_decay, mask=decayed
    ),
}


def schedule(settings: OptimizerSettings, *, total_steps: int, steps_per_epoch: float) -> optax.Schedule:
    """Learning rate by step: linear warm-up from 0, then one of `SCHEDULES`."""
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), total_steps)
    decay = SCHEDULES[settings.schedule](settings, max(total_steps - warmup, 1))
    return optax.join_schedules([optax.linear_schedule(0.0, settings.peak_lr, warmup), decay], [warmup])


def build_optimizer(
    settings: OptimizerSettings, learning_rate: optax.Schedule, frozen: Collection[str] = ()
) -> optax.GradientTransformation:
    """One of `OPTIMIZERS` behind gradient clipping.

    Weight decay leaves biases and norms' scales out unless `decay_bias` (Caffe decays them too). The modules named in
    `frozen` ("conv1", "fire2") stay as they are, weight decay included.
    """

    def decayed(params: Any) -> Any:
        return jax.tree.map(lambda leaf: settings.decay_bias or leaf.ndim > 1, params)

    clip = optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm > 0 else optax.identity()
    update = OPTIMIZERS[settings.name](settings, learning_rate, decayed)
    still = optax.masked(optax.set_to_zero(), lambda params: {name: name in frozen for name in params})
    return optax.chain(clip, update, still)
