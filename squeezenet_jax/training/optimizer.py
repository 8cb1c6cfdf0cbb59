"""Learning-rate schedules and the optimiser, from `OptimizerSettings`, with optax."""

from collections.abc import Collection
from typing import Any

import jax
import optax

from squeezenet_jax.settings import OptimizerSettings


def schedule(settings: OptimizerSettings, *, total_steps: int, steps_per_epoch: float) -> optax.Schedule:
    """Learning rate by step: linear warm-up from 0, then cosine, linear or polynomial decay to 0, or constant."""
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), total_steps)
    rest = max(total_steps - warmup, 1)
    decay = {
        "cosine": lambda: optax.cosine_decay_schedule(settings.peak_lr, rest),
        "linear": lambda: optax.polynomial_schedule(settings.peak_lr, 0.0, 1, rest),
        "poly": lambda: optax.polynomial_schedule(settings.peak_lr, 0.0, settings.poly_power, rest),
        "constant": lambda: optax.constant_schedule(settings.peak_lr),
    }[settings.schedule]()
    return optax.join_schedules([optax.linear_schedule(0.0, settings.peak_lr, warmup), decay], [warmup])


def build_optimizer(
    settings: OptimizerSettings, learning_rate: optax.Schedule, frozen: Collection[str] = ()
) -> optax.GradientTransformation:
    """SGD with momentum (weight decay added to the gradient, as in Caffe) or AdamW, behind gradient clipping.

    Weight decay leaves biases out unless `decay_bias` (Caffe decays them too). The modules named in `frozen` ("conv1",
    "fire2") stay as they are, weight decay included.
    """

    def decayed(params: Any) -> Any:
        return jax.tree.map(lambda leaf: settings.decay_bias or leaf.ndim > 1, params)

    clip = optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm > 0 else optax.identity()
    if settings.name == "adamw":
        update = optax.adamw(
            learning_rate,
            b1=settings.momentum,
            b2=settings.beta2,
            weight_decay=settings.weight_decay,
            mask=decayed,
        )
    else:
        update = optax.chain(
            optax.add_decayed_weights(settings.weight_decay, mask=decayed),
            optax.sgd(learning_rate, momentum=settings.momentum),
        )
    still = optax.masked(optax.set_to_zero(), lambda params: {name: name in frozen for name in params})
    return optax.chain(clip, update, still)
