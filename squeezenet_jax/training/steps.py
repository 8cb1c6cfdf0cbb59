"""The steps that run on the devices: one of gradient descent, one of evaluation, and what comes before step 0.

The steps are plain functions, which `compilation.py` compiles once per sweep setting; data parallelism is one `jit`
over the global batch on a mesh with the axis `data`. Letters: B batch, H, W, C, K classes. Read next: `train.py`, the
loop.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from squeezenet_jax.data.batches import Batch
from squeezenet_jax.network import initialize
from squeezenet_jax.network.model import SqueezeNet
from squeezenet_jax.settings import DataSettings, Settings
from squeezenet_jax.system import devices
from squeezenet_jax.system.randomness import Purpose
from squeezenet_jax.training import augment, objective
from squeezenet_jax.training.compression import Constraint
from squeezenet_jax.weights import transfer
from squeezenet_jax.weights.bundle import collections

# LSUV measures on this many images of the first batch, or all of it: its memory then does not grow with the batch.
LSUV_IMAGES = 128
Variables = dict[str, Any]  # flax's: {"params": ...}, and what else a network keeps, by collection


@flax.struct.dataclass
class TrainState:
    step: jax.Array  # int32: how many steps have been taken
    params: Any
    opt_state: optax.OptState
    model_state: Any = flax.struct.field(default_factory=dict)  # the network's other collections, if it has any
    codes: Any = flax.struct.field(default_factory=dict)  # what compression removes and shares, if it does
    ema: Variables = flax.struct.field(default_factory=dict)  # the average of `variables`, if there is one

    @property
    def variables(self) -> Variables:
        return {"params": self.params, **self.model_state}

    @property
    def used(self) -> Variables:
        """What is evaluated and exported."""
        return self.ema or self.variables


def build_model(settings: Settings) -> SqueezeNet:
    """The run's network. LSUV starts from orthogonal kernels, which `init_state` scales (`initialize.lsuv`)."""
    model, data = settings.model, settings.data
    kernel_init = "orthogonal" if model.kernel_init == "lsuv" else model.kernel_init
    return SqueezeNet(model.architecture(), data.num_classes, kernel_init, model.conv10_init, model.dtype)


def draw_variables(key: jax.Array, *, model: SqueezeNet, data: DataSettings) -> Variables:
    blank = jnp.zeros((1, data.image_size, data.image_size, data.channels))
    return dict(model.init(jax.random.fold_in(key, Purpose.INIT), blank))


def begin_state(
    variables: Variables,
    *,
    tx: optax.GradientTransformation,
    constraint: Constraint | None = None,
    ema_decay: float = 0.0,
) -> TrainState:
    params, model_state = variables["params"], {name: x for name, x in variables.items() if name != "params"}
    codes = constraint.begin(params) if constraint else {}
    ema = jax.tree.map(jnp.copy, variables) if ema_decay else {}  # a buffer of its own: the state is donated
    return TrainState(jnp.int32(0), params, tx.init(params), model_state, codes, ema)


def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    model: SqueezeNet,
    tx: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    data: DataSettings,
    frozen: Collection[str] = (),
    constraint: Constraint | None = None,
    label_smoothing: float = 0.0,
    ema_decay: float = 0.0,
    parts: int = 1,
) -> tuple[TrainState, objective.Tally]:
    """One step of gradient descent on the mean loss of the batch; `key` is the run's, the same for every step.

    The gradient is added up over `parts` of the batch, one after the other, so that only a part's activations need
    memory; every random number belongs to an example, so the result is the same, up to rounding.
    `tx` follows the schedule `learning_rate`, which is here only to be logged, and leaves the `frozen` modules alone.
    With a `constraint` the parameters stay among those that the state's codes allow. With mixup an example's partner is
    the one before it in the batch, whose order is random; it is chosen before the batch is cut up.
    """
    if parts > 1 and state.model_state:
        raise ValueError(f"a network that keeps {', '.join(state.model_state)} cannot have its batch cut up")
    count = jnp.maximum(jnp.sum(batch["mask"]), 1)
    if data.mixup_alpha:
        batch = batch | {"partner": jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), batch)}

    def view(part: Batch, augment_key_B: jax.Array) -> jax.Array:
        image = augment.crop_and_flip(part["image"], augment_key_B, padding=data.crop_padding, flip=data.flip)
        image = augment.normalize(image, data.mean, data.std)
        if data.cutout:
            cutout_key_B = _example_keys(key, Purpose.CUTOUT, state.step, part["index"])
            image = augment.cut_out(image, cutout_key_B, size=data.cutout)
        return image

    def blend(image: jax.Array, part: Batch) -> tuple[jax.Array, jax.Array | None]:
        """What the network is shown, and the labels' probabilities unless they are all 0 or 1."""
        if not (label_smoothing or data.mixup_alpha):
            return image, None
        soft_labels = functools.partial(objective.soft_labels, num_classes=data.num_classes, smoothing=label_smoothing)
        target_BK = soft_labels(part["label"])
        if data.mixup_alpha:
            partner = part["partner"]
            mixup_key_B = _example_keys(key, Purpose.MIXUP, state.step, part["index"])
            share_B = augment.mixup_shares(mixup_key_B, partner["mask"], alpha=data.mixup_alpha)
            other = view(partner, _example_keys(key, Purpose.AUGMENT, state.step, partner["index"]))
            image = augment.mix(image, other, share_B)
            target_BK = augment.mix(target_BK, soft_labels(partner["label"]), share_B)
        return image, target_BK

    def part_of_mean_loss(params: Any, part: Batch) -> tuple[jax.Array, tuple[objective.Tally, Variables]]:
        augment_key_B = _example_keys(key, Purpose.AUGMENT, state.step, part["index"])
        dropout_key_B = _example_keys(key, Purpose.DROPOUT, state.step, part["index"])
        image, target_BK = blend(view(part, augment_key_B), part)
        params = {name: jax.lax.stop_gradient(leaf) if name in frozen else leaf for name, leaf in params.items()}
        variables = {"params": params, **state.model_state}
        mutable = [*state.model_state]
        logits_BK, model_state = model.apply(variables, image, dropout_key_B, part["mask"], mutable=mutable)
        tally = objective.tally(logits_BK, part["label"], part["mask"], target_BK)
        return tally["loss"] / count, (tally, dict(model_state))

    gradient = jax.grad(part_of_mean_loss, has_aux=True)
    (grads, (tally, model_state)), _ = _over_parts(lambda part: (gradient(state.params, part), None), batch, parts)
    if constraint:
        grads = constraint.project(grads, state.codes, state.step)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if constraint:
        params = constraint.project(params, state.codes, state.step)
    logged = {"grad_norm": optax.tree.norm(grads), "learning_rate": learning_rate(state.step)}
    after = TrainState(state.step + 1, params, opt_state, model_state, state.codes)
    if ema_decay:
        ema = averaged(state.ema, after.variables, state.step, decay=ema_decay)
        if constraint:
            ema = ema | {"params": constraint.project(ema["params"], state.codes, state.step)}
        after = dataclasses.replace(after, ema=ema)
    return after, tally | logged


def averaged(ema: Any, now: Any, step: jax.Array, *, decay: float) -> Any:
    """d * ema + (1 - d) * now, with d = min(decay, (1 + step) / (10 + step)), `step` counted from 0.

    An exponential moving average that forgets the start (tf.train.ExponentialMovingAverage's num_updates): after few
    steps it is over few. What does not change is its own average, to the bit.
    """
    rate = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda mean, x: mean + rate * (x - mean), ema, now)


def _example_keys(key: jax.Array, purpose: Purpose, step: jax.Array, index_B: jax.Array) -> jax.Array:
    step_key = jax.random.fold_in(jax.random.fold_in(key, purpose), step)
    return jax.vmap(functools.partial(jax.random.fold_in, step_key))(index_B)


def _over_parts(function: Callable[[Batch], tuple[Any, Any]], batch: Batch, parts: int) -> tuple[Any, Any]:
    """`function` of `parts` equal parts of the batch, computed one after the other.

    Of the two trees that it returns the first is added up over the parts, and the second has a value of each example,
    which are put together in the batch's order.
    """
    if parts == 1:
        return function(batch)

    def divide(x: jax.Array) -> jax.Array:
        # Every parts-th example, so that each device cuts up what it already holds.
        return jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)

    def step(sum_: Any, part: Batch) -> tuple[Any, Any]:
        summed, of_each = function(part)
        return jax.tree.map(jnp.add, sum_, summed), of_each

    divided = jax.tree.map(divide, batch)
    shapes, _ = jax.eval_shape(function, jax.tree.map(lambda x: x[0], divided))
    total, of_each = jax.lax.scan(step, jax.tree.map(jnp.zeros_like, shapes), divided)
    return total, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), of_each)


def output_stds_step(
    variables: Variables, image: jax.Array, *, model: SqueezeNet, data: DataSettings
) -> dict[str, jax.Array]:
    return initialize.output_stds(model, variables, augment.normalize(image, data.mean, data.std))


def eval_step(
    variables: Variables, batch: Batch, *, model: SqueezeNet, data: DataSettings, parts: int = 1
) -> tuple[objective.Tally, objective.Outcomes]:
    """The tally of a batch, of which `parts` are computed one after the other, and what became of each example."""

    def of_part(part: Batch) -> tuple[objective.Tally, objective.Outcomes]:
        image = augment.normalize(part["image"], data.mean, data.std)
        logits_BK = model.apply(variables, image)
        assert isinstance(logits_BK, jax.Array)
        return objective.tally(logits_BK, part["label"], part["mask"]), objective.outcomes(logits_BK, part)

    return _over_parts(of_part, batch, parts)


class Steps(NamedTuple):
    """Compiled programs; called with other shapes they raise instead of compiling again."""

    like: TrainState  # the shapes and types of a state
    init: Callable[[jax.Array], Variables]  # key -> what the network is made of
    begin: Callable[[Variables], TrainState]  # that -> state before step 0
    train: Callable[[TrainState, Batch, jax.Array], tuple[TrainState, objective.Tally]]  # the state is donated
    eval: Callable[[Variables, Batch], tuple[objective.Tally, objective.Outcomes]]
    output_stds: Callable[[Variables, jax.Array], dict[str, jax.Array]]  # for LSUV: network, images -> by layer


def init_state(settings: Settings, steps: Steps, first_image: Any, key: jax.Array, mesh: Mesh) -> TrainState:
    """The state before step 0: drawn, or read from `model.init_from` where its layers fit, conv10 excepted.

    With LSUV, what was drawn for layers without a norm is scaled on `first_image`, images of the first batch: uint8,
    not augmented, and the same on every device, so that the scale does not depend on their number.
    """
    variables, layers = steps.init(key), settings.trace()
    drawn = [layer.name for layer in layers if layer.params and layer.norm == "none"]
    if settings.model.weights:
        given = transfer.initial_params(settings.model, settings.data)
        for name, collection in collections(layers, given).items():
            variables[name] = variables[name] | devices.replicate(collection, mesh)
        drawn = [name for name in drawn if name.split("/")[0] not in given]
    if settings.model.conv10_init != "same":
        drawn = [name for name in drawn if name != "conv10"]
    if settings.model.kernel_init == "lsuv":
        image = devices.replicate(first_image, mesh)
        variables["params"] = initialize.lsuv(
            lambda params: steps.output_stds(variables | {"params": params}, image),
            variables["params"],
            drawn,
            settings.model.lsuv_std,
        )
    return steps.begin(variables)
