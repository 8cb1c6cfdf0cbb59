"""The scale of the signal and of the gradient in every layer before step 0: which network can learn at all.

A signal or a gradient that shrinks or grows from layer to layer is the initialiser's work (Glorot & Bengio 2010; He et
al., arXiv 1502.01852), and a bypass changes both. `launch.py --signal` prints what `scales` finds.
"""

import functools
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp

from squeezenet_jax.data import sources
from squeezenet_jax.data.batches import Batch, TrainBatches
from squeezenet_jax.network.model import SqueezeNet
from squeezenet_jax.settings import DataSettings, Settings
from squeezenet_jax.system import devices
from squeezenet_jax.training import augment, objective
from squeezenet_jax.training.steps import (
    LSUV_IMAGES,
    Steps,
    TrainState,
    Variables,
    build_model,
    draw_variables,
    init_state,
    output_stds_step,
)

IMAGES = 32  # of the first batch: all activations and their gradients are kept


class Scale(NamedTuple):
    """Root mean squares over images, H, W and channels.

    Attributes:
      layer: "fire2/squeeze1x1".
      output: of what the convolution gives, before norm, pool and activation.
      gradient: of an image's own loss with respect to that.
    """

    layer: str
    output: float
    gradient: float


def scales(settings: Settings) -> list[Scale]:
    """Every convolution of the network that a run with these settings starts from, on images of its first batch.

    Neither augmented nor with dropout; batch normalisation is by these images. Raises `UserError` where the run cannot
    start.
    """
    source, mesh, model = sources.load(settings.data, "train_split"), devices.data_mesh(), build_model(settings)
    first = TrainBatches(source, min(settings.train.batch_size, LSUV_IMAGES), settings.seed).batch_at(0)
    steps = Steps(
        like=None,  # type: ignore[arg-type]  # nothing is restored, trained or evaluated
        init=jax.jit(functools.partial(draw_variables, model=model, data=settings.data)),
        begin=lambda variables: TrainState(jnp.int32(0), variables.pop("params"), (), variables),
        train=None,  # type: ignore[arg-type]
        eval=None,  # type: ignore[arg-type]
        output_stds=jax.jit(functools.partial(output_stds_step, model=model, data=settings.data)),
    )
    state = init_state(settings, steps, first["image"], devices.run_key(settings.seed, mesh), mesh)
    batch = {name: first[name][:IMAGES] for name in ("image", "label", "mask")}
    rms = jax.jit(functools.partial(root_mean_squares, model=model, data=settings.data))
    by_layer = jax.device_get(rms(state.variables, devices.replicate(batch, mesh)))
    return [Scale(layer.name, *map(float, by_layer[layer.name])) for layer in settings.trace() if layer.params]


def root_mean_squares(
    variables: Variables, batch: Batch, *, model: SqueezeNet, data: DataSettings
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """By layer, the root mean squares of its output and of the gradient of the summed loss with respect to it."""
    image = augment.normalize(batch["image"], data.mean, data.std)

    def loss(added: Variables) -> tuple[jax.Array, Variables]:
        """With something added to every layer's output."""
        mutable = ["intermediates", "batch_stats"]
        logits_BK, kept = model.apply(
            {**variables, "perturbations": added}, image, mask_B=batch["mask"], mutable=mutable
        )
        return objective.tally(logits_BK, batch["label"], batch["mask"])["loss"], kept["intermediates"]

    shapes = jax.eval_shape(lambda: loss({})[1])
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), _unwrapped(shapes))
    gradients, outputs = jax.grad(loss, has_aux=True)(nothing)
    of_outputs, of_gradients = map(flax.traverse_util.flatten_dict, (_unwrapped(outputs), gradients))
    return {"/".join(path[:-1]): (_rms(x), _rms(of_gradients[path])) for path, x in of_outputs.items()}


def _unwrapped(intermediates: Variables) -> Variables:
    """What flax's `sow` kept, of each the one value that there is."""
    values: Variables = jax.tree.map(lambda kept: kept[0], intermediates, is_leaf=lambda x: isinstance(x, tuple))
    return values


def _rms(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))
