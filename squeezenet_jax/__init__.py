"""SqueezeNet (arXiv 1602.07360) in JAX: its variants, its published weights, and a laboratory to compare them.

Load weights of any published format, here DeepScale's, and classify a photograph (the labels: a line a class):

    import squeezenet_jax

    weights = squeezenet_jax.load("squeezenet_v1.1.safetensors", preprocessing="caffe", labels="imagenet_labels.txt")
    for name, probability in squeezenet_jax.classify(weights, "cat.jpg", top=3):
        print(f"{probability:6.1%}  {name}")

A new network for ten classes, an ordinary flax module:

    import jax
    from squeezenet_jax import SqueezeNet, build

    model = SqueezeNet(build("v1.1", bypass="simple"), num_classes=10)
    variables = jax.jit(model.init)(jax.random.key(0), jax.numpy.zeros((1, 64, 64, 3)))
    logits = jax.jit(model.apply)(variables, jax.numpy.zeros((8, 64, 64, 3)))  # [8, 10]

The table of a variant, without a network:

    from squeezenet_jax import build, trace

    for layer in trace(build("v1.0", bypass="complex"), image_size=224, num_classes=1000):
        print(f"{layer.name:20}{layer.shape!s:16}{layer.params:10,}{layer.macs:14,}")

`save` writes weights as .safetensors, `export_weights` as .onnx, .stablehlo or .tflite, `export_hub` as a folder for a
model hub. Wrong input raises `UserError`.

A name is imported when it is first used, so `import squeezenet_jax` takes no time: no jax, NumPy or Pillow. Read next:
`network/architecture.py`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from squeezenet_jax.export import export_weights as export_weights
    from squeezenet_jax.export.hub import export_hub as export_hub
    from squeezenet_jax.network.architecture import Architecture as Architecture
    from squeezenet_jax.network.architecture import Metaparameters as Metaparameters
    from squeezenet_jax.network.architecture import build as build
    from squeezenet_jax.network.model import SqueezeNet as SqueezeNet
    from squeezenet_jax.network.trace import count as count
    from squeezenet_jax.network.trace import trace as trace
    from squeezenet_jax.system.errors import UserError as UserError
    from squeezenet_jax.weights import Preprocessing as Preprocessing
    from squeezenet_jax.weights import Weights as Weights
    from squeezenet_jax.weights import load as load
    from squeezenet_jax.weights import save as save
    from squeezenet_jax.weights.classify import classify as classify

__version__ = "0.1.0"

# The public names and the modules that own them, for a running program; the imports above say it to type checkers.
_OWNERS = {
    "Architecture": "network.architecture",
    "Metaparameters": "network.architecture",
    "Preprocessing": "weights",
    "SqueezeNet": "network.model",
    "UserError": "system.errors",
    "Weights": "weights",
    "build": "network.architecture",
    "classify": "weights.classify",
    "count": "network.trace",
    "export_hub": "export.hub",
    "export_weights": "export",
    "load": "weights",
    "save": "weights",
    "trace": "network.trace",
}
__all__ = [*_OWNERS]


if not TYPE_CHECKING:  # to a type checker this function would make every name a public one

    def __getattr__(name: str) -> Any:
        """Imports a public name when it is first used (PEP 562)."""
        if name not in _OWNERS:
            from squeezenet_jax.system.errors import unknown

            raise AttributeError(str(unknown(f"module {__name__}", name, __all__)))
        value = getattr(importlib.import_module(f"{__name__}.{_OWNERS[name]}"), name)
        globals()[name] = value  # from now on without this function
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
