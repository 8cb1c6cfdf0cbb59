"""What became of each evaluated image: `predictions.npz` in a run's directory, of its final evaluation.

One array each, a row for every image that could be read, in the order of `index`:

index        int32 [N]              the image's place in its split
label        uint8 or uint16 [N]    its class
top          the same type [N, 5]   the network's best classes, the best first; all classes where there are fewer than 5
probability  float32 [N]            what the network gives to the label

`top[:, 0] == label` are the top-1 hits: exactly those that the evaluation counted, ties included. `numpy.load` reads
the file; 10,000 images take about 100 kB. Runs of versions before this one have none. Letters: N examples. No jax.
"""

import dataclasses
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from squeezenet_jax.system import atomic
from squeezenet_jax.system.errors import UserError

NAME = "predictions.npz"


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """The outcomes of one evaluation, by image."""

    index: np.ndarray
    label: np.ndarray
    top: np.ndarray
    probability: np.ndarray

    @property
    def top1(self) -> np.ndarray:
        """Whether each image's best class is its label; bool [N]."""
        hits: np.ndarray = self.top[:, 0] == self.label
        return hits


def join(batches: Sequence[Mapping[str, np.ndarray]]) -> Predictions:
    """The outcomes of an evaluation's batches (`objective.outcomes`), without padding and unreadable images."""
    whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    kept = np.flatnonzero(whole["mask"])
    kept = kept[np.argsort(whole["index"][kept], kind="stable")]
    classes = np.min_scalar_type(max(whole["top"].max(), whole["label"].max()))
    return Predictions(
        index=whole["index"][kept].astype(np.int32),
        label=whole["label"][kept].astype(classes),
        top=whole["top"][kept].astype(classes),
        probability=whole["probability"][kept].astype(np.float32),
    )


def save(directory: Path, predictions: Predictions) -> None:
    """Writes a run's `predictions.npz`, at once or not at all; the same outcomes give the same bytes."""
    content = io.BytesIO()
    arrays = {field.name: getattr(predictions, field.name) for field in dataclasses.fields(predictions)}
    np.savez_compressed(content, **arrays)
    atomic.write(directory / NAME, content.getvalue())


def load(directory: Path) -> Predictions | None:
    """The predictions of a finished run; None where it has none, as a run of an earlier version.

    Raises:
      UserError: the file is damaged.
    """
    path = directory / NAME
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = Predictions(*(arrays[field.name] for field in dataclasses.fields(Predictions)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}); without it the rest can be compared"
        ) from None
    return found
