"""A small network with six classes, and the commands as a user types them."""

from pathlib import Path

import jax
import numpy as np

from squeezenet_jax.__main__ import main
from squeezenet_jax.network import architecture
from squeezenet_jax.network.model import SqueezeNet
from squeezenet_jax.weights.bundle import Preprocessing, Weights, parameter_shapes, unflatten
from squeezenet_jax.weights.images import read_image

REPOSITORY = Path(__file__).parents[1]
CLASSES = ("cat", "dog", "emu", "fox", "gnu", "hen")
SMALL = Preprocessing("small", 40, "squash", 33, "RGB", 1 / 255, (0.5,), (0.25,))


def draw(width, num_classes=6, norm="none"):
    arch = architecture.build("v1.1", geometry="caffe", width=width, bypass="simple", norm=norm)
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(arch, channels=3, num_classes=num_classes)
    flat = {name: (rng.normal(size=s) * np.prod(s[:-1]) ** -0.5).astype(np.float32) for name, s in shapes.items()}
    flat |= {name: np.abs(x) for name, x in flat.items() if name.endswith("/var")}
    flat["conv10/bias"] += 1  # above the ReLU, so that the classes differ
    return Weights(arch, unflatten(flat), num_classes, 3, SMALL, CLASSES[:num_classes])


def program(network):
    model = SqueezeNet(network.arch, network.num_classes)
    return jax.jit(lambda image: model.apply({"params": network.params}, image))


def reference(network, paths):
    """Logits one image at a time, without `weights.inference`."""
    apply = program(network)
    images = (read_image(path, network.preprocessing)[None] for path in paths)
    return np.concatenate([apply(image) for image in images])


def run(*argv):
    return main([str(arg) for arg in argv])


def fails(capsys, *argv):
    """The one line of a command that ends with 2."""
    assert run(*argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err
