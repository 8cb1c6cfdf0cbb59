"""The presets: what belongs to a dataset, complete in network, data and optimiser, each group with its source.

Precedence, weakest first: the defaults of `squeezenet_jax/settings.py`, the preset, the experiment's own changes, the
sweep, the command line (`--config.optimizer.peak_lr=0.01`). No jax here: planning a sweep must take no time.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from squeezenet_jax import settings
from squeezenet_jax.system import nested
from squeezenet_jax.system.errors import check_choice

Group = dict[str, Any]

# -- networks ----------------------------------------------------------------------------------------------------------
V1_0: Group = {  # the model card's
    "model.version": "v1.0",
    "model.stem": "card",
    "model.geometry": "same",
    "model.width": 1.0,
}
V1_1: Group = {  # DeepScale's
    "model.version": "v1.1",
    "model.stem": "card",
    "model.geometry": "caffe",
    "model.width": 1.0,
}
# Every layer of every variant begins with the same scale, so that a comparison of bypasses compares no initialisers.
# The scale was chosen on digits, together with ADAMW.
LSUV: Group = {
    "model.kernel_init": "lsuv",
    "model.lsuv_std": 0.3,
    "model.conv10_init": "same",
}
# Caffe's xavier is scaled by the inputs: flax calls it lecun_uniform. DeepScale/SqueezeNet, SqueezeNet_v1.0/
# train_val.prototxt.
CAFFE_INIT: Group = {
    "model.kernel_init": "lecun_uniform",
    "model.conv10_init": "normal_0.01",
}

# -- data --------------------------------------------------------------------------------------------------------------
# Neither cropped nor mirrored.
AS_THEY_ARE: Group = {
    "data.crop": "whole",
    "data.crop_padding": 0,
    "data.flip": False,
    "data.exif_orientation": False,
}
# Photographs decoded at every step: the crops are Inception's and torchvision's.
RANDOM_CROPS: Group = {
    "data.channels": 3,
    "data.crop": "random_resized",
    "data.crop_min_area": 0.08,
    "data.eval_resize": 256,
    "data.crop_padding": 0,
    "data.flip": True,
    "data.exif_orientation": True,
}
IMAGENET_STATISTICS: Group = {  # torchvision's
    "data.mean": (0.485, 0.456, 0.406),
    "data.std": (0.229, 0.224, 0.225),
}
# Caffe's network takes 0..255 minus a mean of each channel (train_val.prototxt), here in RGB.
CAFFE_PIXELS: Group = {
    "data.channels": 3,
    "data.mean": (123 / 255, 117 / 255, 104 / 255),
    "data.std": (1 / 255, 1 / 255, 1 / 255),
}

# What recipes add against overfitting and noise: none of it.
PLAIN: Group = {
    "data.cutout": 0,
    "data.mixup_alpha": 0.0,
    "optimizer.label_smoothing": 0.0,
    "train.ema_decay": 0.0,
}

# Mirrored, and shifted by an eighth of their side, which follows from their size. Mean and std are the training
# images'.
CIFAR_10: Group = {
    "data.name": "cifar10",
    "data.channels": 3,
    "data.mean": (0.491, 0.482, 0.447),
    "data.std": (0.247, 0.243, 0.262),
    "data.crop": "whole",
    "data.flip": True,
    "data.exif_orientation": False,
}

# -- optimisers --------------------------------------------------------------------------------------------------------
# Trains all three bypasses; chosen on digits, on a part of the training images (train[80%:]).
ADAMW: Group = {
    "optimizer.name": "adamw",
    "optimizer.peak_lr": 2e-3,
    "optimizer.schedule": "cosine",
    "optimizer.poly_power": 0.5,
    "optimizer.warmup_epochs": 2.0,
    "optimizer.momentum": 0.9,
    "optimizer.beta2": 0.999,
    "optimizer.weight_decay": 2e-4,
    "optimizer.decay_bias": False,
    "optimizer.clip_norm": 1.0,
    **PLAIN,
}
# Of the parts of a recipe that were tried on CIFAR-10, the one that was worth it (RESULTS.md). With it, too, ADAMW's
# rate was the best of four for v1.1 at full width, judged on a part of the training images.
NORMALISED: Group = {
    "model.norm": "batch",
    **ADAMW,
}
TEN_EPOCHS: Group = {
    "train.epochs": 10.0,
    "train.batch_size": 32,
}
# DeepScale/SqueezeNet, SqueezeNet_v1.0/solver.prototxt: base_lr 0.04, lr_policy poly with power 1, momentum 0.9,
# weight_decay 0.0002, which Caffe applies to biases too, batch 32 x iter_size 16, max_iter 170000. No warm-up and no
# clipping. An epoch has 1,281,167 images.
DEEPSCALE: Group = {
    "optimizer.name": "sgd",
    "optimizer.peak_lr": 0.04,
    "optimizer.schedule": "linear",
    "optimizer.poly_power": 1.0,
    "optimizer.warmup_epochs": 0.0,
    "optimizer.momentum": 0.9,
    "optimizer.beta2": 0.999,  # of adamw only
    "optimizer.weight_decay": 2e-4,
    "optimizer.decay_bias": True,
    "optimizer.clip_norm": 0.0,
    **PLAIN,
    "train.epochs": 170_000 * 512 / 1_281_167,
    "train.batch_size": 512,
}

# -- presets -----------------------------------------------------------------------------------------------------------
# A few thousand photographs.
SMALL_PHOTOGRAPHS: Group = {
    **V1_1,
    **LSUV,
    **IMAGENET_STATISTICS,
    **RANDOM_CROPS,
    "data.image_size": 128,
    "data.eval_resize": 146,
    "data.crop_min_area": 0.35,
    **ADAMW,
    **TEN_EPOCHS,
    "train.epochs": 40.0,
}

IMAGENET: Group = {
    **V1_0,
    "model.geometry": "caffe",
    "data.name": "imagenet2012",
    "data.eval_split": "validation",  # where TFDS has ImageNet's test split too, that has no labels
    "data.image_size": 227,
    **RANDOM_CROPS,
    "train.log_every_steps": 100,
    "train.checkpoint_every_steps": 1000,
}

PRESETS: dict[str, Group] = {
    # scikit-learn's 1,797 scanned digits, 8x8 px, enlarged, from -1 to 1; no download.
    "digits": {
        **V1_0,
        "model.stem": "small",
        "model.width": 0.5,
        **LSUV,
        "data.name": "digits",
        "data.image_size": 16,
        "data.channels": 1,
        "data.mean": (0.5,),
        "data.std": (0.5,),
        **AS_THEY_ARE,
        **ADAMW,
        **TEN_EPOCHS,
    },
    # 70,000 articles of clothing, 28x28 px, through tensorflow-datasets. Enlarged, so that v1.1's own stem sees every
    # pixel and its pool makes the rest cheap: five minutes a run on two cores. Mean and std are the training images'.
    "fashion_mnist": {
        **V1_1,
        "model.width": 0.5,
        **LSUV,
        "data.name": "fashion_mnist",
        "data.image_size": 56,
        "data.channels": 1,
        "data.mean": (0.286,),
        "data.std": (0.353,),
        **AS_THEY_ARE,
        **ADAMW,
        "train.epochs": 8.0,
        "train.batch_size": 64,
    },
    # The same as weights from ImageNet want it: 64 px, three channels, Caffe's normalisation (in RGB).
    "fashion_mnist_64": {
        **V1_0,
        **LSUV,
        "data.name": "fashion_mnist",
        "data.image_size": 64,
        **CAFFE_PIXELS,
        "data.crop": "whole",
        "data.crop_padding": 4,
        "data.flip": True,
        "data.exif_orientation": False,
        **ADAMW,
        **TEN_EPOCHS,
    },
    # 60,000 photographs, 32x32 px, enlarged to twice that for v1.1's stem: thirteen minutes a run on two cores.
    # docs/data.md has the command that prepares it.
    "cifar10": {
        **V1_1,
        **LSUV,
        **CIFAR_10,
        "data.image_size": 64,
        "data.crop_padding": 8,
        **ADAMW,
        "optimizer.peak_lr": 1e-3,
        "train.epochs": 10.0,
        "train.batch_size": 64,
    },
    # For an hour of two cores (RESULTS.md). v1.0 in the same time:
    # --config.model.version=v1.0 --config.model.geometry=same --config.train.epochs=32
    "cifar10_best": {
        **V1_1,
        **LSUV,
        **CIFAR_10,
        "data.image_size": 64,
        "data.crop_padding": 8,
        **NORMALISED,
        "train.epochs": 80.0,
        "train.batch_size": 64,
    },
    # The same as they are, 32 px, and so narrow that a run takes five to eight minutes on two cores. For many seeds,
    # not for the best accuracy. Fashion-MNIST's analogue is fashion_mnist with --config.train.epochs=5.
    "cifar10_32": {
        **V1_1,
        "model.stem": "small",
        "model.geometry": "same",
        "model.width": 0.175,
        **LSUV,
        **CIFAR_10,
        "data.image_size": 32,
        "data.crop_padding": 4,
        **ADAMW,
        "train.epochs": 8.0,
        "train.batch_size": 64,
    },
    # Ten easy classes of ImageNet, 13,000 photographs (fast.ai).
    "imagenette": {
        **SMALL_PHOTOGRAPHS,
        "data.name": "imagenette",
        "train.batch_size": 64,
    },
    # 1.28 million photographs, for accelerators: DeepScale's network, solver and pixels, whose range its initialiser
    # needs. Its crops, 227 px of an image squashed to 256, are not offered; these are torchvision's. Others saw the
    # complex bypass diverge with this solver (xevolesi/pytorch_squeezenet, README): it makes the signal grow, which
    # --config.model.kernel_init=lsuv should prevent. That was not tried at this scale.
    "imagenet": {
        **IMAGENET,
        **CAFFE_INIT,
        **CAFFE_PIXELS,
        **DEEPSCALE,
    },
    # The same with batch normalisation, the initialiser and solver of cifar10_best, and torchvision's pixels. It was
    # not run at this scale: the rate is of batches of 64.
    "imagenet_modern": {
        **IMAGENET,
        **LSUV,
        **IMAGENET_STATISTICS,
        **NORMALISED,
        "train.epochs": DEEPSCALE["train.epochs"],
        "train.batch_size": DEEPSCALE["train.batch_size"],
    },
    # Anybody's photographs: --config.data.dir=DIR with train/<class>/*.jpg and test/<class>/*.jpg (or val).
    "folder": {
        **SMALL_PHOTOGRAPHS,
        "data.name": "folder",
    },
}

PRESET = "digits"  # where the command line names none


def get_config(preset: str = PRESET, experiment: Mapping[str, Any] | None = None) -> ConfigDict:
    """The config of one experiment on one preset, before its sweep and the command line."""
    check_choice("preset", preset, PRESETS)
    return ConfigDict(nested.unflatten(settings.DEFAULTS | PRESETS[preset] | dict(experiment or {}), "."))
