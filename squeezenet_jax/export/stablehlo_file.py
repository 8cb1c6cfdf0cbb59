"""StableHLO: the flax model itself, lowered and serialised by `jax.export`, for the CPU, CUDA and TPU at once.

`jax.export.deserialize(bytearray(path.read_bytes())).call(image_BHWC)` runs it anywhere jax is installed, without this
code; the batch size is free. jax promises to read such files for months, not for ever: keep the weights as the
archive. The metadata are a zip archive behind the program (`unzip -l` shows it). Read next: `tflite_file.py`.
"""

from pathlib import Path

import flatbuffers  # noqa: F401 - jax.export serialises with it, and says so only after the work is done
import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from squeezenet_jax.export.attachment import attach
from squeezenet_jax.export.network import Network
from squeezenet_jax.export.verify import Run
from squeezenet_jax.network import lowering

BATCHES = (1, 3)
PLATFORMS = ("cpu", "cuda", "tpu")


def convert(network: Network) -> bytes:
    """The network as a serialised `jax.export.Exported` with a symbolic batch."""
    (batch,) = export.symbolic_shape("batch")
    exported = lower(network, batch, PLATFORMS)
    return attach(bytes(exported.serialize()), network.metadata_as_text())


def lower(network: Network, batch: object, platforms: tuple[str, ...]) -> export.Exported:
    """The flax model as StableHLO for images float32 [batch, H, W, C], in its portable form."""

    def squeezenet(image_BHWC: jax.Array) -> jax.Array:
        return network.apply(image_BHWC)

    size = network.image_size
    image = jax.ShapeDtypeStruct((batch, size, size, network.channels), jnp.float32)
    with lowering.portable():
        return export.export(jax.jit(squeezenet), platforms=platforms)(image)


def load(path: Path) -> Run:
    """The file read back by jax.export, run on the CPU."""
    program = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)

    def run(image_BHWC: np.ndarray) -> np.ndarray:
        with jax.default_device(jax.devices("cpu")[0]):
            return np.asarray(program(image_BHWC))

    return run
