"""A trained network as an exporter needs it: table, parameters, a fixed image size, and what goes into the file.

Letters: B batch, H = W image size, C channels, K classes. Read next: `verify.py`.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from squeezenet_jax.network.architecture import Architecture
from squeezenet_jax.network.trace import Layer, trace
from squeezenet_jax.weights.bundle import Preprocessing, Weights, flatten

if TYPE_CHECKING:
    import jax

PIXEL_STD = 64  # of photographs, 0 to 255, roughly


@dataclasses.dataclass(frozen=True)
class Network:
    """Everything that an exporter reads.

    Attributes:
      variables: what the flax model is applied to, nested by the paper's names: float32, HWIO kernels.
      params: the same by path, "fire2/squeeze1x1/kernel", whatever the collection.
      image_size: H = W of the images that the exported file takes; paddings depend on it, so it is fixed.
      preprocessing: from a decoded image to the network's input.
      input_std: rough standard deviation of a preprocessed pixel (1 for normalised images, about 64 for 0 to 255).
      metadata: facts that travel inside the file: preprocessing, labels, provenance, all of them JSON.
    """

    arch: Architecture
    variables: Mapping[str, Any]
    params: Mapping[str, Any]
    num_classes: int
    channels: int
    image_size: int
    preprocessing: Preprocessing
    input_std: float
    metadata: Mapping[str, object]

    def layers(self) -> list[Layer]:
        """The rows of `trace`. Raises `UserError` where the images are too small for the network."""
        return trace(self.arch, image_size=self.image_size, channels=self.channels, num_classes=self.num_classes)

    def apply(self, image_BHWC: "jax.Array") -> "jax.Array":
        """The flax model, [B, H, W, C] -> logits [B, K]; traceable, the parameters being constants."""
        from squeezenet_jax.network.model import SqueezeNet  # here, for engines that need no jax

        model = SqueezeNet(self.arch, self.num_classes)  # float32 whatever the run computed in
        return cast("jax.Array", model.apply(self.variables, image_BHWC))

    def reference(self, image_BHWC: np.ndarray) -> np.ndarray:
        """The flax model's logits [B, K], computed on the CPU whatever devices there are."""
        import jax

        with jax.default_device(jax.devices("cpu")[0]):
            return np.asarray(self._jitted(image_BHWC))

    @functools.cached_property
    def _jitted(self) -> Any:
        import jax

        return jax.jit(self.apply)

    def metadata_as_text(self) -> dict[str, str]:
        """Each entry of `metadata` as one JSON text; of names that are no UTF-8, the broken bytes as JSON escapes."""
        texts = {name: json.dumps(value, ensure_ascii=False) for name, value in self.metadata.items()}
        return {name: text.encode("utf-8", "backslashreplace").decode("utf-8") for name, text in texts.items()}


def from_weights(weights: Weights, image_size: int | None = None) -> Network:
    """A network whose images are those of the weights' own preprocessing, or `image_size` px.

    With another size the recorded preprocessing is scaled: the same part of the picture in another resolution.
    """
    preprocessing = weights.preprocessing
    if image_size is not None:
        resize = round(preprocessing.resize * image_size / preprocessing.crop)
        preprocessing = dataclasses.replace(preprocessing, resize=resize, crop=image_size)
    metadata: dict[str, object] = {
        "preprocessing": dataclasses.asdict(preprocessing),
        "provenance": dict(weights.provenance),
        "architecture": dataclasses.asdict(weights.arch),
    }
    if weights.labels:
        metadata["labels"] = weights.labels
    return Network(
        arch=weights.arch,
        variables=weights.variables,
        params=flatten(weights.params),
        num_classes=weights.num_classes,
        channels=weights.channels,
        image_size=preprocessing.crop,
        preprocessing=preprocessing,
        input_std=PIXEL_STD * preprocessing.scale / float(np.mean(preprocessing.std)),
        metadata=metadata,
    )
