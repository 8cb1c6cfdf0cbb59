"""Fewer bytes for trained weights, with photographs but without labels: `calibrate`.

All weights of a convolution become multiples of one step, and 0 stays 0. Rounding with steps D_l costs about

    KL = sum over layers of n_l D_l^2 / 24 sensitivity_l,

and n_l log2(1 / D_l) bits, n_l being its number of weights. For a given number of bytes the best steps are therefore
D_l = kappa / sqrt(sensitivity_l): one number, kappa, decides on the bytes, and is searched for. The sensitivity of a
weight is what the Fisher information says (`sensitivity.py`), times what compensation leaves of it (`rounding.py`).

Then the convolutions are rounded one after another. Each sees the input x that those before it give now, and aims at
the output that it had with the input y that they gave before; half of the difference is made up for by its weights
(GPTAQ, 2504.02692, has all of it, which fits the calibration images better and others worse), and the mean of the rest
by its bias. Letters: N images, H, W, C, P, Q, O; D = H W I weights of an output channel.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from squeezenet_jax.compress import activations, rounding, sensitivity
from squeezenet_jax.compress.activations import Moments
from squeezenet_jax.data import archives
from squeezenet_jax.network.trace import IMAGE, Layer
from squeezenet_jax.system import storage
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.bundle import Weights, flatten
from squeezenet_jax.weights.formats import compressed
from squeezenet_jax.weights.images import images_below, read_image
from squeezenet_jax.weights.quantized import QuantizedLayer

MADE_UP_FOR = 0.5  # the share of the earlier layers' errors that a layer's weights make up for
BIAS_MANTISSA = 6  # bits that a bias keeps
LOG_KAPPA = (-16.0, 6.0)  # from where weights have more bits than are kept to where all are 0; natural logarithm
SEARCHES, PASSES = 14, 5
CLOSE = 0.995  # of the budget is close enough
MAX_IMAGES = 400  # all outputs of a layer are in memory: 2 networks x 5 MB for each image of 227 px


def calibrate(
    weights: Weights,
    images: str | Path | Sequence[str | Path],
    *,
    num_bytes: int,
    report: Callable[[str], None] = lambda line: None,
) -> list[QuantizedLayer]:
    """The layers of `weights`, quantised so that they take at most `num_bytes`, and change predictions little.

    The same input gives the same layers on the same machine. v1.0 and 100 photographs take minutes on two cores.

    Args:
      images: paths of photographs, or a folder with some at any depth; some hundred are better than one hundred.
        Their classes are not asked for. Of more than 400 about so many are used, evenly spread over the folder.
      num_bytes: of the whole file.
      report: gets a line whenever something is done.

    Raises:
      UserError: no images, one that cannot be read, a budget that not even a network of zeros would keep, or a network
        with batch or group normalisation.
    """
    norm = getattr(weights.arch, "norm", "none")
    if norm != "none":
        raise UserError(f"norm: {norm} normalisation cannot be calibrated; only a network without any can")
    besides = compressed.overhead(weights)

    def size_of(layers: Sequence[QuantizedLayer]) -> int:
        return besides + compressed.encoded_size(layers)

    image_NHWC = _read(images, weights, report)
    work = _Work(weights, image_NHWC, report)
    smallest = size_of(work.rounded_apart(LOG_KAPPA[1]))
    if smallest > num_bytes:
        raise UserError(f"bytes: {num_bytes:,} are too few; the smallest file of this network has {smallest:,}")
    aim = num_bytes * (1 + CLOSE) / 2  # the middle of what is close enough
    log_kappa = _search(work, aim, size_of)
    best: list[QuantizedLayer] | None = None
    best_bytes, slope = 0, work.num_weights / 8 / math.log(2)
    tried: list[tuple[float, int]] = []
    for number in range(2 * PASSES):
        layers = work.rounded(log_kappa)
        size = size_of(layers)
        report(f"pass {number + 1}: {size:,} bytes")
        if best_bytes < size <= num_bytes:
            best, best_bytes = layers, size
        if best is not None and (best_bytes >= CLOSE * num_bytes or number + 1 >= PASSES):
            break
        tried.append((log_kappa, size))
        # Towards the aim, by the slope that was seen last.
        if len(tried) > 1 and tried[-1][0] != tried[-2][0]:
            seen = (tried[-2][1] - tried[-1][1]) / (tried[-1][0] - tried[-2][0])
            slope = seen if seen > 0 else slope
        log_kappa += float(np.clip((size - aim) / slope, -0.7, 0.7))
        log_kappa = min(log_kappa, LOG_KAPPA[1])
    if best is None:
        raise UserError(f"bytes: {num_bytes:,} were not reached in {2 * PASSES} passes; the last had {size:,}")
    return best


def _search(work: "_Work", aim: float, size_of: Callable[[Sequence[QuantizedLayer]], int]) -> float:
    """The logarithm of the kappa with which layers rounded to the nearest multiples have about `aim` bytes."""
    low, high = LOG_KAPPA
    for _ in range(SEARCHES):
        middle = (low + high) / 2
        low, high = (middle, high) if size_of(work.rounded_apart(middle)) > aim else (low, middle)
    return high


def _read(images: str | Path | Sequence[str | Path], weights: Weights, report: Callable[[str], None]) -> np.ndarray:
    """float32 [N, H, W, C], as the network takes them. Of a folder, what is no image is left out, with a line."""
    whole_folder = isinstance(images, str | Path)
    if isinstance(images, str | Path):
        paths = images_below(storage.brought(images, "images"))
    else:
        paths = [Path(path) for path in images]
    read = []
    for path in paths[:: -(-len(paths) // MAX_IMAGES) or 1]:
        try:
            read.append(read_image(path, weights.preprocessing))
        except UserError as error:
            if not whole_folder:
                raise
            report(f"left out: {error}")
    if not read:
        where = f"{archives.printable(str(images))}: holds" if whole_folder else "images: there are"
        raise UserError(f"{where} no images to calibrate with; at least one is needed, and a hundred are better")
    return np.stack(read)


class _Work:
    """The network, the images, and what is measured once: sensitivities, and from them the steps' proportions."""

    def __init__(self, weights: Weights, image_NHWC: np.ndarray, report: Callable[[str], None]) -> None:
        self.layers = weights.trace()
        self.flat = flatten(weights.params)
        self.image_NHWC = image_NHWC
        self.num_weights = sum(int(np.count_nonzero(self.flat[f"{name}/kernel"])) for name in self.convolutions)
        report(f"measuring how sensitive {len(self.convolutions)} layers are, on {len(image_NHWC)} images")
        self.sensitivity = sensitivity.measure(self.layers, self.flat, image_NHWC)
        self.of_weight: dict[str, float] = {}
        for layer, (x_NHWC,) in self._walk([self.flat]):
            moment = self._moments(layer, x_NHWC, x_NHWC)
            # What a systematic error of a weight costs, over what errors that differ from position to position would.
            ratio = self.sensitivity[layer.name].trace / max(float(np.trace(moment.product_DD)), 1e-30)
            left = np.diag(np.linalg.cholesky(rounding.damped(moment.product_DD))) ** 2
            per_channel = math.exp(float(np.log(left).mean())) / layer.shape[2]
            self.of_weight[layer.name] = max(ratio * per_channel, 1e-30)
        report("measured")

    @property
    def convolutions(self) -> list[str]:
        return [layer.name for layer in self.layers if layer.kind == "conv"]

    def step(self, name: str, log_kappa: float) -> float:
        largest = float(np.abs(self.flat[f"{name}/kernel"]).max())
        least = largest / (rounding.MAX_CODE / 2) or 1.0  # compensation may need more than the largest weight
        return float(np.float32(max(math.exp(log_kappa) / math.sqrt(self.of_weight[name]), least)))

    def rounded_apart(self, log_kappa: float) -> list[QuantizedLayer]:
        """Every weight to its nearest multiple, about as many bytes as with compensation."""
        layers = []
        for name in self.convolutions:
            step = self.step(name, log_kappa)
            code = np.clip(np.rint(self.flat[f"{name}/kernel"] / step), -rounding.MAX_CODE, rounding.MAX_CODE)
            layers.append(_layer(name, code.astype(np.int64), step, _short(self.flat[f"{name}/bias"])))
        return layers

    def rounded(self, log_kappa: float) -> list[QuantizedLayer]:
        """One layer after another, with compensation."""
        done = dict(self.flat)
        layers = []
        for layer, (y_NHWC, x_NHWC) in self._walk([self.flat, done]):
            moment = self._moments(layer, x_NHWC, y_NHWC)
            layers.append(self._rounded(layer, moment, self.step(layer.name, log_kappa)))
            done[f"{layer.name}/kernel"], done[f"{layer.name}/bias"] = layers[-1].kernel_HWIO, layers[-1].bias_O
        return layers

    def _rounded(self, layer: Layer, moment: Moments, step: float) -> QuantizedLayer:
        kernel_HWIO = self.flat[f"{layer.name}/kernel"]
        weight_OD = kernel_HWIO.reshape(-1, layer.shape[2]).T.astype(np.float64)
        slope_OD = MADE_UP_FOR * weight_OD @ (moment.cross_DD - moment.product_DD)
        code_OD = rounding.compensated(weight_OD, moment.product_DD, step, slope_OD)
        # The mean of what is left over: W y - Q x.
        missing_O = (weight_OD @ moment.should_D - step * code_OD @ moment.sum_D) / (moment.weight or 1.0)
        bias_O = _short((self.flat[f"{layer.name}/bias"] + missing_O).astype(np.float32))
        return _layer(layer.name, code_OD.T.reshape(kernel_HWIO.shape), step, bias_O)

    def _moments(self, layer: Layer, x_NHWC: np.ndarray, y_NHWC: np.ndarray) -> Moments:
        return activations.moments(layer, x_NHWC, y_NHWC, self.sensitivity[layer.name].position_NPQ)

    def _walk(self, networks: Sequence[Mapping[str, np.ndarray]]) -> Iterator[tuple[Layer, list[np.ndarray]]]:
        """Each convolution with its input in each of the networks, whose own parameters are looked at afterwards."""
        last_reader = {name: layer.name for layer in self.layers for name in layer.inputs}
        known = [{IMAGE: self.image_NHWC} for _ in networks]
        for layer in self.layers:
            if layer.kind == "conv":
                yield layer, [outputs[layer.inputs[0]] for outputs in known]
            for outputs, flat in zip(known, networks, strict=True):
                outputs[layer.name] = activations.output(layer, [outputs[name] for name in layer.inputs], flat)
                for name in layer.inputs:
                    if last_reader[name] == layer.name:
                        del outputs[name]


def _layer(name: str, code_HWIO: np.ndarray, step: float, bias_O: np.ndarray) -> QuantizedLayer:
    """Multiples of a step; those that no weight has are not in the table."""
    multiples = np.unique(code_HWIO[code_HWIO != 0])
    values = np.concatenate([np.zeros(1, np.float32), np.float32(step) * multiples.astype(np.float32)])
    place_HWIO = np.where(code_HWIO == 0, 0, np.searchsorted(multiples, code_HWIO) + 1)
    return QuantizedLayer(name, place_HWIO.astype(np.int16), values, bias_O)


def _short(bias_O: np.ndarray) -> np.ndarray:
    """The nearest float32 with `BIAS_MANTISSA` bits of mantissa: half a percent at most."""
    mantissa, exponent = np.frexp(bias_O)
    scale = np.float32(1 << (BIAS_MANTISSA + 1))
    rounded: np.ndarray = np.ldexp(np.rint(mantissa * scale) / scale, exponent).astype(np.float32)
    return rounded
