"""The programs of a run: the functions of `steps.py` compiled for its shapes and devices. Plumbing."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from squeezenet_jax.network import lowering
from squeezenet_jax.network.model import SqueezeNet
from squeezenet_jax.settings import DataSettings, Settings
from squeezenet_jax.system import devices, malloc
from squeezenet_jax.training import optimizer
from squeezenet_jax.training.compression import Constraint
from squeezenet_jax.training.steps import (
    Steps,
    begin_state,
    build_model,
    draw_variables,
    eval_step,
    output_stds_step,
    train_step,
)

programs: dict[tuple[Settings, int, float, Mesh], Steps] = {}  # one entry: the seeds of a setting share them


def compile_steps(settings: Settings, total_steps: int, steps_per_epoch: float, mesh: Mesh) -> Steps:
    """Compiles a run's programs. `settings.seed` must be 0: seeds enter through the key."""
    key = (settings, total_steps, steps_per_epoch, mesh)
    if key not in programs:
        programs.clear()  # before the next ones are compiled, so that two settings' never lie in memory together
        malloc.give_back()
        with malloc.without_collection():
            programs[key] = _compile_steps(*key)
        malloc.give_back()
    return programs[key]


def _compile_steps(settings: Settings, total_steps: int, steps_per_epoch: float, mesh: Mesh) -> Steps:
    data, sizes, frozen, model = settings.data, settings.train, settings.model.frozen, build_model(settings)
    rate = optimizer.schedule(settings.optimizer, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    tx = optimizer.build_optimizer(settings.optimizer, rate, frozen)
    parts = _num_parts(model, sizes.batch_size, data.image_size, mesh, sizes.accumulation_steps, training=True)
    eval_parts = _num_parts(model, sizes.eval_batch_size, data.image_size, mesh, training=False)

    init = functools.partial(draw_variables, model=model, data=data)
    constraint = Constraint(settings.compress, total_steps) if settings.compress.active else None
    begin = functools.partial(begin_state, tx=tx, constraint=constraint, ema_decay=sizes.ema_decay)
    train = functools.partial(
        train_step,
        model=model,
        tx=tx,
        learning_rate=rate,
        data=data,
        frozen=frozen,
        constraint=constraint,
        label_smoothing=settings.optimizer.label_smoothing,
        ema_decay=sizes.ema_decay,
        parts=parts,
    )
    evaluate = functools.partial(eval_step, model=model, data=data, parts=eval_parts)
    output_stds = functools.partial(output_stds_step, model=model, data=data)

    everywhere, options = devices.replicated(mesh), lowering.compiler_options()
    key = _abstract(jax.eval_shape(lambda: jax.random.key(0)), everywhere)
    state = _abstract(jax.eval_shape(lambda key: begin(init(key)), key), everywhere)
    batch, eval_batch = (_abstract_batch(size, data, mesh) for size in (sizes.batch_size, sizes.eval_batch_size))
    return Steps(
        like=state,
        # Runs once: level 0 halves the time to compile fifty unrolled random generators.
        init=jax.jit(init, out_shardings=everywhere, compiler_options={"xla_backend_optimization_level": 0}),
        begin=jax.jit(begin, out_shardings=everywhere),
        train=jax.jit(train, donate_argnums=0, out_shardings=everywhere).lower(state, batch, key).compile(options),
        eval=jax.jit(evaluate, out_shardings=everywhere).lower(state.used, eval_batch).compile(options),
        output_stds=jax.jit(output_stds, out_shardings=everywhere),
    )


def _num_parts(
    model: SqueezeNet, batch_size: int, image_size: int, mesh: Mesh, accumulation_steps: int = 1, *, training: bool
) -> int:
    """How many parts of a batch are computed one after the other, for the memory's sake or for a CPU's cache."""
    if mesh.size > 1:  # after each part of a step the devices meet
        return accumulation_steps
    size = batch_size // accumulation_steps
    return accumulation_steps * lowering.num_microbatches(model.arch, size, image_size, training=training)


def _abstract(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _abstract_batch(size: int, data: DataSettings, mesh: Mesh) -> Any:
    image = jax.ShapeDtypeStruct((size, data.image_size, data.image_size, data.channels), jnp.uint8)
    scalars = {name: jax.ShapeDtypeStruct((size,), jnp.int32) for name in ("label", "mask", "index")}
    return _abstract({"image": image} | scalars, devices.split(mesh))
