"""LiteRT in int8, by its own quantiser: integers in every operation that it knows, floats converted at both ends.

Its own calibration averages each tensor's range over the pictures with a forgetting factor, which cuts what the last
twenty do not reach: of v1.0's 64 % on 100 photographs that leaves 44 %. So the ranges are those of all pictures.
"""

import contextlib
import io
import warnings

from litert_quantizer import qtyping
from litert_quantizer.algorithm_manager import AlgorithmName
from litert_quantizer.calibrator import Calibrator
from litert_quantizer.quantizer import Quantizer
from litert_quantizer.recipe_manager import RecipeManager
from litert_quantizer.utils.qsv_utils import min_max_update

from squeezenet_jax.export.attachment import attach
from squeezenet_jax.export.int8 import Decoded, Int8, Number
from squeezenet_jax.export.network import Network
from squeezenet_jax.export.tflite_file import SIGNATURE
from squeezenet_jax.system.cores import cores

EVERYTHING = ".*"  # whatever an operation's name


def quantize(network: Network, content: bytes, decoded: Decoded, asked: Int8) -> bytes:
    """The float file's `content` as an int8 file."""
    recipe = _recipe(asked)
    # The quantiser draws progress bars and warns of what calibration is, that all tensors are kept.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        calibrator = Calibrator(content, num_threads=cores(), qsv_update_func=min_max_update)
        for image_HWC in decoded.image_NHWC:
            calibrator.calibrate({SIGNATURE: [{"image": image_HWC[None]}]}, recipe)
        quantizer = Quantizer(content, recipe.get_quantization_recipe())
        result = quantizer.quantize(calibrator.get_model_qsvs(), enable_progress_report=False)
    return attach(bytes(result.quantized_model), network.metadata_as_text())


def _recipe(asked: Int8) -> RecipeManager:
    granularity = qtyping.QuantGranularity.TENSORWISE if asked.per_tensor else qtyping.QuantGranularity.CHANNELWISE
    recipe = RecipeManager()
    recipe.add_static_config(EVERYTHING, qtyping.TFLOperationName.ALL_SUPPORTED, 8, 8, granularity)
    for end, number in (
        (qtyping.TFLOperationName.INPUT, asked.input_type),
        (qtyping.TFLOperationName.OUTPUT, asked.output_type),
    ):
        _set_end(recipe, end, number)
    return recipe


def _set_end(recipe: RecipeManager, end: qtyping.TFLOperationName, number: Number) -> None:
    """An end is int8 unless it is told otherwise."""
    if number == "float32":
        recipe.add_quantization_config(EVERYTHING, end, algorithm_key=AlgorithmName.NO_QUANTIZE)
    if number == "uint8":
        activation = qtyping.TensorQuantizationConfig(8, symmetric=False, dtype=qtyping.TensorDataType.UINT)
        weight = qtyping.TensorQuantizationConfig(8, granularity=qtyping.QuantGranularity.CHANNELWISE)
        recipe.add_quantization_config(
            EVERYTHING,
            end,
            qtyping.OpQuantizationConfig(
                activation_tensor_config=activation,
                weight_tensor_config=weight,
                compute_precision=qtyping.ComputePrecision.INTEGER,
            ),
        )
