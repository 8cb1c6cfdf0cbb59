"""SqueezeNet and its training in PyTorch, from the same tables: what `compare_pytorch.py` compares with.

    python benchmarks/pytorch_squeezenet.py main-job        (needs benchmarks/requirements.txt)

trains one run of the main job (`launch.py --config experiments/bypass.py --only bypass=none,seed=0`) the PyTorch way:
the same images in the same batches, AdamW behind gradient clipping, warm-up and cosine, an exact evaluation each epoch.

The images come as uint8 [B, H, W, C] arrays, which PyTorch sees as [B, C, H, W] in the memory format `channels_last`,
its fastest on a CPU, without copying. Letters: B batch, H, W, C channels, K classes.
"""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))

from squeezenet_jax.network.architecture import Architecture, FireSpec
from squeezenet_jax.settings import DataSettings, OptimizerSettings, Settings

FORMATS = ("channels_last", "contiguous", "compile")  # compile: channels_last through torch.compile


class Fire(nn.Module):
    def __init__(self, inputs: int, spec: FireSpec) -> None:
        super().__init__()
        if spec.bypass != "none":
            raise ValueError("bypasses are not compared")
        self.squeeze1x1 = nn.Conv2d(inputs, spec.squeeze, 1)
        self.expand1x1 = nn.Conv2d(spec.squeeze, spec.expand1x1, 1)
        self.expand3x3 = nn.Conv2d(spec.squeeze, spec.expand3x3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        s = functional.relu(self.squeeze1x1(x), inplace=True)
        expanded = [functional.relu(layer(s), inplace=True) for layer in (self.expand1x1, self.expand3x3)]
        return torch.cat(expanded, dim=1)


class SqueezeNet(nn.Module):
    """A table's network; modules carry our parameters' names."""

    def __init__(self, arch: Architecture, channels: int, num_classes: int) -> None:
        super().__init__()
        stem = arch.stem
        if stem.padding == "SAME" and (stem.stride, stem.kernel % 2) != (1, 1):
            raise ValueError("SAME is lopsided there, which PyTorch's convolution is not")
        padding = stem.kernel // 2 if stem.padding == "SAME" else 0
        self.arch = arch
        self.conv1 = nn.Conv2d(channels, stem.features, stem.kernel, stem.stride, padding)
        inputs = stem.features
        for number, spec in arch.fires():
            self.add_module(f"fire{number}", Fire(inputs, spec))
            inputs = spec.features
        self.conv10 = nn.Conv2d(inputs, num_classes, 1, padding=arch.conv10_padding)

    def forward(self, x: Tensor) -> Tensor:
        arch, number = self.arch, 2
        x = functional.relu(self.conv1(x), inplace=True)
        x = self._pool(x) if arch.stem.pool else x
        for index, group in enumerate(arch.groups):
            for _ in group:
                x = getattr(self, f"fire{number}")(x)
                number += 1
            x = self._pool(x) if index < len(arch.groups) - 1 else x
        x = self.conv10(functional.dropout(x, arch.dropout, self.training))
        x = functional.relu(x, inplace=True) if arch.conv10_relu else x
        return x.mean((2, 3))

    def _pool(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(x, 3, 2, ceil_mode=self.arch.pool_ceil)

    @torch.no_grad()
    def load(self, params: Mapping[str, np.ndarray]) -> None:
        """Takes {"fire2/squeeze1x1/kernel": [height, width, in, out], ...}."""
        own = dict(self.named_parameters())
        assert len(own) == len(params)
        for name, value in params.items():
            layer, kind = name.rsplit("/", 1)
            tensor = torch.from_numpy(value.transpose(3, 2, 0, 1) if kind == "kernel" else value)
            own[f"{layer.replace('/', '.')}.{'weight' if kind == 'kernel' else kind}"].copy_(tensor)

    def params(self) -> dict[str, np.ndarray]:
        """The inverse of `load`."""
        found = {}
        for name, tensor in self.named_parameters():
            value, path = tensor.detach().numpy(), name.replace(".", "/")
            found[path.replace("/weight", "/kernel")] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        return found


def build(arch: Architecture, channels: int, num_classes: int, memory_format: str) -> SqueezeNet:
    net = SqueezeNet(arch, channels, num_classes)
    if memory_format != "contiguous":
        net = net.to(memory_format=torch.channels_last)
    if memory_format == "compile":
        net.compile()
    return net


def as_input(image_BHWC: np.ndarray, memory_format: str) -> Tensor:
    """[B, C, H, W]; a view, except where it has to be contiguous."""
    image = torch.from_numpy(image_BHWC).permute(0, 3, 1, 2)
    return image.contiguous() if memory_format == "contiguous" else image


def normalize(image: Tensor, data: DataSettings) -> Tensor:
    def per_channel(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values).view(1, -1, 1, 1)

    return (image.float() / 255 - per_channel(data.mean)) / per_channel(data.std)


def build_optimizer(net: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    kernels = [p for p in net.parameters() if p.ndim > 1]
    biases = [p for p in net.parameters() if p.ndim == 1]
    bias_decay = settings.weight_decay if settings.decay_bias else 0.0
    groups = [
        {"params": kernels, "weight_decay": settings.weight_decay},
        {"params": biases, "weight_decay": bias_decay},
    ]
    if settings.name == "adamw":
        betas = (settings.momentum, settings.beta2)
        return torch.optim.AdamW(groups, lr=settings.peak_lr, betas=betas, fused=True)
    return torch.optim.SGD(groups, lr=settings.peak_lr, momentum=settings.momentum, fused=True)


def train_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Mapping[str, np.ndarray],
    settings: Settings,
    memory_format: str = "channels_last",
) -> Tensor:
    """The mean loss. As we: normalisation, cross entropy, gradient, clipping where it is asked for, update."""
    image = normalize(as_input(batch["image"], memory_format), settings.data)
    loss = functional.cross_entropy(net(image), torch.from_numpy(batch["label"]).long())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if settings.optimizer.clip_norm > 0:
        nn.utils.clip_grad_norm_(net.parameters(), settings.optimizer.clip_norm)
    optimizer.step()
    return loss.detach()


def learning_rate(settings: OptimizerSettings, step: int, warmup: int, total: int) -> float:
    """Linear warm-up, then cosine."""
    if step < warmup:
        return settings.peak_lr * step / warmup
    return settings.peak_lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def train_main_job(settings: Settings) -> float:
    """Trains to the end and returns the last top-1; a log line every `train.log_every_steps` steps."""
    from squeezenet_jax.data import sources
    from squeezenet_jax.data.batches import EvalBatches, TrainBatches

    train, data = settings.train, settings.data
    assert (settings.optimizer.schedule, data.crop_padding, data.flip) == ("cosine", 0, False)
    torch.manual_seed(settings.seed)
    batches = TrainBatches(sources.load(data, "train_split"), train.batch_size, settings.seed)
    eval_batches = EvalBatches(sources.load(data, "eval_split"), train.eval_batch_size)
    net = build(settings.model.architecture(), data.channels, data.num_classes, "channels_last")
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    optimizer = build_optimizer(net, settings.optimizer)
    total = round(train.epochs * batches.steps_per_epoch)
    warmup = round(settings.optimizer.warmup_epochs * batches.steps_per_epoch)
    eval_every = round(train.eval_every_epochs * batches.steps_per_epoch)
    top1, losses = 0.0, torch.zeros(())
    for step in range(total):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings.optimizer, step, warmup, total)
        losses += train_step(net, optimizer, batches.batch_at(step), settings)
        if (step + 1) % train.log_every_steps == 0:
            print(f"step {step + 1}: loss {float(losses) / train.log_every_steps:.4f}")
            losses.zero_()
        if step + 1 == total or ((step + 1) % eval_every == 0 and 2 * (total - step - 1) >= eval_every):
            top1 = evaluate(net, eval_batches, data)
            print(f"step {step + 1}: top-1 {top1:.4f}")
    return top1


@torch.inference_mode()
def evaluate(net: nn.Module, batches: Any, data: DataSettings) -> float:
    net.eval()
    hits = count = 0
    for position in range(len(batches)):
        batch = batches.batch_at(position)
        real = torch.from_numpy(batch["mask"]) == 1
        logits = net(normalize(as_input(batch["image"], "channels_last"), data))
        hits += int((logits.argmax(1) == torch.from_numpy(batch["label"]))[real].sum())
        count += int(real.sum())
    net.train()
    return hits / count


def main_job_settings() -> Settings:
    """Of the run that `launch.py --config experiments/bypass.py --only bypass=none,seed=0` trains."""
    from experiments import base, bypass
    from squeezenet_jax.experiment import planning

    whole = planning.plan(bypass, base.PRESET, bypass.get_config().to_dict(), ())
    (run,) = whole.only("bypass=none,seed=0").runs
    return run.settings


if __name__ == "__main__":
    if sys.argv[1:] != ["main-job"]:
        sys.exit(__doc__)
    train_main_job(main_job_settings())
