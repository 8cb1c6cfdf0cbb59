"""How long 68 epochs of ImageNet take on 1 to 256 accelerators, and what limits them: arithmetic, not a measurement.

    python benchmarks/scale.py             (prints the tables of docs/scale.md; no jax, no accelerator)

A step takes the longest of three things that happen at the same time: the chips compute it and add up their gradients,
the hosts' cores decode the images of a later one, and each host's main process hands images over and starts programs.
Every number is one of three kinds: MEASURED by this project, from a DATASHEET, or ASSUMED; docs/scale.md says which and
from where. `tests/network/test_scale.py` holds that the page has these tables. Units: seconds, bytes, FLOP (2 for each
multiply-add), images. Read next: `squeezenet_jax/network/trace.py`, where MACs and shapes come from.
"""

import dataclasses
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments.base import PRESETS
from squeezenet_jax.network.architecture import build
from squeezenet_jax.network.trace import Layer, count, trace

PRESET = PRESETS["imagenet"]  # v1.0 in Caffe's geometry, 227 px, DeepScale's solver
BATCH = PRESET["train.batch_size"]
PIXEL_BYTES = 3 * PRESET["data.image_size"] ** 2  # of one image in a batch, uint8
TRAIN_IMAGES = 1_281_167
IMAGES = round(PRESET["train.epochs"] * TRAIN_IMAGES)  # of a whole training
CHIPS = (1, 8, 32, 256)

# MEASURED, on a core of the earlier machine that benchmarks/README.md names beside its tables.
DECODE = 1.17e-3  # s of one core: JPEG of 256 px short side to a 224 px crop (simplejpeg)
DECODE_ORIGINAL = 1.99e-3  # the same from JPEGs as they are
JPEG_BYTES = 104e3  # of one of those, on average
HAND_OVER = 0.01 / 64  # s an image, from the worker that decoded it to the main process (data/batches.py); roughly
DISPATCH = 0.6e-3 + 1.6e-3  # s a step: to send a batch and to start the program (16 px, batch 32)
CPU_STEP = {"v1.0": 505e-3, "v1.1": 223e-3}  # s, 16 images of 224 px, two cores

# ASSUMED.
UTILISATION = (0.05, 0.30)  # of the peak
COPY = 5e9  # bytes/s that one thread copies: a batch is put together, and sent, so twice
VALUE_BYTES = 4  # of an activation: the preset computes in float32


@dataclasses.dataclass(frozen=True)
class Chip:
    """DATASHEET numbers of an accelerator and its host; `hop` alone is ASSUMED.

    Attributes:
      peak: FLOP/s without sparsity, as float32 programs use the chip at jax's default precision.
      peak_bfloat16: the same with `model.dtype=bfloat16`.
      bandwidth: of its memory, bytes/s.
      per_host: chips of a host.
      cores: of a host; two vCPUs are one.
      link, far_link: bytes/s in one direction of one link, within a host and between hosts.
      sides: of the torus that so many chips are; a sum travels along one after another, there and back.
      hop: s, from a chip to the next one.
    """

    name: str
    peak: float
    peak_bfloat16: float
    memory: float
    bandwidth: float
    per_host: int
    cores: int
    link: float
    far_link: float
    sides: dict[int, tuple[int, ...]]
    hop: float

    def hosts(self, chips: int) -> int:
        return -(-chips // self.per_host)

    def cores_for(self, chips: int) -> float:
        """Of each host; fewer chips than a host has get their share of its cores."""
        return self.cores * min(1, chips / self.per_host)


TORUS_3D = {1: (1,), 8: (2, 2, 2), 32: (2, 4, 4), 256: (4, 8, 8)}
TORUS_2D = {1: (1,), 8: (2, 4), 32: (4, 8), 256: (16, 16)}
TREE = {chips: (2,) * round(math.log2(chips)) for chips in CHIPS}  # as many hops as a tree has levels
V4 = Chip("TPU v4", 275e12, 275e12, 32e9, 1200e9, 4, 120, 50e9, 50e9, TORUS_3D, 1e-6)
V5E = Chip("TPU v5e", 197e12, 197e12, 16e9, 819e9, 8, 112, 50e9, 50e9, TORUS_2D, 1e-6)
H100 = Chip("H100 SXM", 494e12, 989e12, 80e9, 3350e9, 8, 112, 450e9, 50e9, TREE, 5e-6)
ALL = (V4, V5E, H100)


def network(version: str, image_size: int = PRESET["data.image_size"]) -> list[Layer]:
    return trace(build(version, geometry=PRESET["model.geometry"]), image_size=image_size, num_classes=1000)


def train_flop(layers: Sequence[Layer]) -> int:
    """Of one image: forward, and for each convolution two more of the same size; conv1 needs no input gradient."""
    return 2 * (3 * count(layers)[1] - layers[0].macs)


def kept_values(layers: Sequence[Layer]) -> int:
    """Activations that the backward pass needs: outputs of convolutions and pools; ReLU and bias are part of them."""
    return sum(layer.activation_size for layer in layers if layer.kind in ("conv", "max_pool"))


def moved_values(layers: Sequence[Layer]) -> int:
    """Values of one image that cross the chip's memory bus in a step, if no layer is fused with another: ASSUMED.

    A convolution reads or writes something of its input's and something of its output's size three times (forward,
    kernel's and input's gradient), a pool twice; kernels are small beside a batch's activations.
    """
    size = {layer.name: layer.activation_size for layer in layers}
    size[layers[0].inputs[0]] = PRESET["data.image_size"] ** 2 * layers[0].in_channels
    passes = {"conv": 3, "max_pool": 2, "mean": 2, "add": 2, "concat": 0}
    return sum(passes[x.kind] * (x.activation_size + sum(size[name] for name in x.inputs)) for x in layers)


def image_seconds(chip: Chip, layers: Sequence[Layer], utilisation: float) -> float:
    """Of one chip: by its FLOP/s, but no faster than its memory."""
    return max(train_flop(layers) / (utilisation * chip.peak), VALUE_BYTES * moved_values(layers) / chip.bandwidth)


def all_reduce_seconds(chip: Chip, layers: Sequence[Layer], chips: int) -> float:
    """Of all gradients in float32: one ring over the slowest link, and the hops."""
    link = chip.far_link if chip.hosts(chips) > 1 else chip.link
    hops = 2 * sum(side - 1 for side in chip.sides[chips])
    return 4 * count(layers)[0] * 2 * (chips - 1) / chips / link + hops * chip.hop


@dataclasses.dataclass(frozen=True)
class Step:
    """Seconds that one step keeps each of them busy; `host` is a host's main process."""

    device: float
    all_reduce: float
    input: float
    host: float

    @property
    def without_host(self) -> float:
        return max(self.device + self.all_reduce, self.input)

    @property
    def seconds(self) -> float:
        return max(self.without_host, self.host)

    @property
    def limit(self) -> str:
        if self.seconds == self.host:
            return "host"
        if self.seconds == self.input:
            return "input"
        return "device" if self.device >= self.all_reduce else "all-reduce"


def host_image_seconds() -> tuple[float, float]:
    """Of a host's main process: if hand-overs overlap and only copies count, and if one comes after another."""
    return 2 * PIXEL_BYTES / COPY, HAND_OVER


def steps(chip: Chip, layers: Sequence[Layer], chips: int, batch: int) -> tuple[Step, Step]:
    """One step, at best and at worst of what is assumed."""
    of_host = batch / chip.hosts(chips)
    best, worst = (
        Step(
            device=batch / chips * image_seconds(chip, layers, utilisation),
            all_reduce=all_reduce_seconds(chip, layers, chips),
            input=of_host * DECODE / chip.cores_for(chips),
            host=max(of_host * per_image, DISPATCH),
        )
        for utilisation, per_image in zip(reversed(UTILISATION), host_image_seconds(), strict=True)
    )
    return best, worst


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def span(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("h", 3600)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{0 if seconds >= 10 * size else 1}f} {unit}"
    return f"{seconds / 60:.0f} min"


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}" if seconds < 0.01 else f"{1e3 * seconds:,.0f}"


def datasheets() -> str:
    head = ("datasheet", "peak, TFLOP/s", "the same, bfloat16", "memory, GB", "its GB/s", "link in a host, GB/s")
    head = (*head, "between hosts, GB/s", "chips of a host", "cores of a host")
    numbers = ("peak", "peak_bfloat16", "memory", "bandwidth", "link", "far_link", "per_host", "cores")
    unit = dict(zip(numbers, (1e12, 1e12, 1e9, 1e9, 1e9, 1e9, 1, 1), strict=True))
    return table(head, [[c.name, *(f"{getattr(c, name) / unit[name]:,.0f}" for name in numbers)] for c in ALL])


def networks() -> str:
    def row(version: str, size: int) -> list[str]:
        layers = network(version, size)
        parameters, macs = count(layers)
        flop, kept = train_flop(layers), VALUE_BYTES * kept_values(layers)
        return [
            f"{version}, {size} px",
            f"{parameters:,}",
            f"{macs / 1e6:,.1f} M",
            f"{flop / 1e9:.2f} GFLOP",
            f"{4 * parameters / 1e6:.2f} MB",
            f"{kept / 1e6:.1f} MB",
        ]

    head = ("network", "parameters", "MACs forward", "a training step", "gradients", "activations kept")
    return table(head, [row(version, size) for version in CPU_STEP for size in (224, 227)])


def rates() -> str:
    """Of one chip alone, with nothing to wait for."""

    def row(chip: Chip, version: str) -> list[str]:
        layers = network(version)
        slow, fast = (1 / image_seconds(chip, layers, utilisation) for utilisation in UTILISATION)
        memory = chip.bandwidth / moved_values(layers) / VALUE_BYTES
        return [
            f"{chip.name}, {version}",
            span(f"{slow:,.0f}", f"{fast:,.0f}"),
            f"{memory:,.0f}",
            f"{100 * memory * train_flop(layers) / chip.peak:.0f} %",
            f"{2 * memory:,.0f}",
            f"{100 * 2 * memory * train_flop(layers) / chip.peak_bfloat16:.0f} %",
            f"{chip.memory / VALUE_BYTES / kept_values(layers):,.0f}",
        ]

    head = (
        "one chip",
        "images/s",
        "memory's limit",
        "of the peak",
        "the same, bfloat16",
        "of the peak",
        "images whose activations fit",
    )
    return table(head, [row(chip, version) for chip in ALL for version in CPU_STEP])


def hosts() -> str:
    def row(chip: Chip) -> list[str]:
        decoded, original = chip.cores / DECODE, chip.cores / DECODE_ORIGINAL
        handed_over = [1 / seconds for seconds in reversed(host_image_seconds())]
        layers = network(PRESET["model.version"])
        wanted = [chip.per_host / image_seconds(chip, layers, utilisation) for utilisation in UTILISATION]
        return [
            f"{chip.name}: {chip.per_host} chips, {chip.cores} cores",
            span(f"{wanted[0]:,.0f}", f"{wanted[1]:,.0f}"),
            f"{decoded:,.0f}",
            f"{original:,.0f}",
            span(f"{handed_over[0]:,.0f}", f"{handed_over[1]:,.0f}"),
            span(*(f"{images * JPEG_BYTES / 1e9:.1f}" for images in handed_over)) + " GB/s",
        ]

    head = (
        "one host, images/s",
        "its chips, v1.0",
        "decoding, 256 px",
        "decoding, originals",
        "main process",
        "originals read at that rate",
    )
    return table(head, map(row, ALL))


TERMS = ("device, ms", "all-reduce, ms", "input, ms", "host, ms", "limit", "68 epochs but for the host", "68 epochs")


def terms(chip: Chip, version: str, chips: int, batch: int) -> list[str]:
    """What a step and a training take, from best to worst; the all-reduce's share is of the chips' time."""
    both = best, worst = steps(chip, network(version), chips, batch)
    shares = sorted(round(100 * step.all_reduce / (step.all_reduce + step.device)) for step in both)
    return [
        span(milliseconds(best.device), milliseconds(worst.device)),
        f"{milliseconds(best.all_reduce)} ({span(*map(str, shares))} %)" if best.all_reduce else "–",
        milliseconds(best.input),
        span(milliseconds(best.host), milliseconds(worst.host)),
        span(best.limit, worst.limit),
        span(*(duration(IMAGES / batch * step.without_host) for step in both)),
        span(*(duration(IMAGES / batch * step.seconds) for step in both)),
    ]


def durations(version: str) -> str:
    """At the preset's batch."""

    def row(chip: Chip, chips: int) -> list[str]:
        return [f"{chips} {chip.name}", str(chip.hosts(chips)), *terms(chip, version, chips, BATCH)]

    return table(("chips", "hosts", *TERMS), [row(chip, chips) for chip in ALL for chips in CHIPS])


def batches(chip: Chip = V5E, chips: int = 256, version: str = "v1.0") -> str:
    def row(batch: int) -> list[str]:
        return [f"{batch:,}", str(batch // chips), *terms(chip, version, chips, batch)]

    return table(("batch", "images a chip", *TERMS), map(row, (512, 1024, 2048, 4096, 8192, 16384)))


def processor() -> str:
    """The one machine that was measured."""

    def row(version: str) -> list[str]:
        seconds = CPU_STEP[version] / 16
        return [f"two cores of a CPU, {version}, 224 px", f"{1 / seconds:.0f}", duration(IMAGES * seconds)]

    return table(("measured", "images/s", "time"), map(row, CPU_STEP))


def tables() -> dict[str, str]:
    """By title, in the page's order."""
    return {
        "networks": networks(),
        "datasheets": datasheets(),
        "one chip": rates(),
        "one host": hosts(),
        "68 epochs, v1.0": durations("v1.0"),
        "68 epochs, v1.1": durations("v1.1"),
        "batch sizes, 256 TPU v5e, v1.0": batches(),
        "a CPU": processor(),
    }


if __name__ == "__main__":
    print("\n\n".join(f"{title}\n\n{text}" for title, text in tables().items()))
