"""Every default of every run, once, and the data presets. An experiment changes a few of them and sweeps a few more.

Precedence, weakest first: this file, the experiment's own changes, the preset, the sweep, the command line
(`--config.optimizer.peak_lr=0.01`). No jax here: planning a sweep must take no time.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from squeezenet_jax.system.errors import check_choice

DEFAULTS: dict[str, Any] = {
    "seed": 0,  # everything random follows from it
    # -- network -------------------------------------------------------------------------------------------------
    "model.version": "v1.0",  # v1.0 (the paper's) or v1.1
    "model.stem": "card",  # card: the version's own, for 224 px; small: 3x3 stride 1 without pool, for 8 to 64 px
    "model.geometry": "same",  # same (the model card), caffe, torchvision: borders of stem, pools and conv10
    "model.width": 1.0,  # multiplies the filters of conv1 and the fires
    "model.bypass": "none",  # none, simple, complex (paper Sec. 6)
    "model.bypass_relu": True,  # ReLU on a complex bypass's 1x1 convolution; the paper leaves it open
    "model.conv10_relu": True,  # ReLU between conv10 and the global average
    "model.base_e": 128,  # metaparameters, paper Sec. 5.1: expand filters of the first fire,
    "model.incr_e": 128,  # ... and how many are added
    "model.freq": 2,  # ... every so many fires
    "model.squeeze_ratio": 0.125,  # squeeze filters / expand filters
    "model.pct3x3": 0.5,  # share of the expand filters that are 3x3
    "model.dropout": 0.5,  # after the last fire
    "model.kernel_init": "lsuv",  # glorot_uniform (the card), lecun_uniform (Caffe), he_uniform (torchvision), lsuv
    "model.lsuv_std": 0.3,  # standard deviation of every layer's output that lsuv aims at
    "model.conv10_init": "same",  # same as the rest, or normal_0.01 (Caffe and torchvision)
    "model.init_from": "",  # weights to start from: a file that `convert` reads, or a run's directory; "": none
    "model.start": "init_from",  # init_from: those weights, if any; scratch: ignore them
    "model.freeze": "none",  # none, conv1, fire2 ... fire9: the last module that keeps the weights it started from
    "model.dtype": "float32",  # of activations: float32, bfloat16; parameters stay float32
    # -- data: see PRESETS ---------------------------------------------------------------------------------------
    "data.name": "digits",  # digits, fashion_mnist, folder, or any dataset that `prepare` or TFDS has put into data.dir
    "data.dir": "~/tensorflow_datasets",  # where TFDS keeps its datasets; of folder: what holds train/<class>/*.jpg
    "data.train_split": "train",  # a split, or a part: train[:80%], train[80%:], train[100:200]
    "data.eval_split": "",  # the same; "": test, or validation where there is no test
    "data.image_size": 16,  # px; smaller images are enlarged to it
    "data.channels": 1,
    "data.num_classes": 0,  # 0: as many as the dataset has
    "data.mean": (0.5,),  # of pixels in 0..1, per channel; subtracted
    "data.std": (0.5,),  # ... and divided by
    "data.crop": "whole",  # whole: the image, squashed; random_resized: Inception's crops, and the centre to evaluate
    "data.crop_min_area": 0.08,  # of random_resized: the smallest crop's share of the image
    "data.eval_resize": 256,  # of random_resized: px of the short side before the centre of image_size is cut out
    "data.crop_padding": 0,  # px of zero padding for random crops; 0: none
    "data.flip": False,  # mirror half of the images
    "data.decoder": "auto",  # of JPEG files: pillow, simplejpeg, or auto, simplejpeg where it is installed
    "data.exif_orientation": False,  # turn a photograph as EXIF says it was held; recorded with the weights
    "data.workers": 0,  # processes that decode; 0: threads, one per core
    # -- optimiser -----------------------------------------------------------------------------------------------
    "optimizer.name": "adamw",  # sgd, adamw
    "optimizer.peak_lr": 2e-3,
    "optimizer.schedule": "cosine",  # cosine, linear, poly, constant; all but the last end at 0
    "optimizer.poly_power": 0.5,  # of schedule poly (0.5: the released v1.0's solver)
    "optimizer.warmup_epochs": 2.0,  # linear, from 0
    "optimizer.momentum": 0.9,  # sgd's momentum, adamw's beta 1
    "optimizer.beta2": 0.999,
    "optimizer.weight_decay": 2e-4,
    "optimizer.decay_bias": False,  # Caffe's solver decays biases too
    "optimizer.clip_norm": 1.0,  # of the whole gradient; 0: no clipping
    # -- training ------------------------------------------------------------------------------------------------
    "train.epochs": 10.0,
    "train.batch_size": 32,  # of one step, over all devices
    "train.accumulation_steps": 1,  # parts of a batch, computed one after the other: the same result in less memory
    "train.eval_batch_size": 256,
    "train.eval_every_epochs": 1.0,
    "train.log_every_steps": 20,
    "train.checkpoint_every_steps": 500,
    "train.keep_checkpoints": 2,  # the newest ones
    "train.stall_margin": 0.02,  # a training loss this close to ln(classes) has not begun to learn
    "train.hang_minutes": 30.0,  # without any progress, after which the process ends, saying in what; 0: never
}

# Photographs decoded at every step; the statistics are ImageNet's.
PHOTOGRAPHS = {
    "data.channels": 3,
    "data.mean": (0.485, 0.456, 0.406),
    "data.std": (0.229, 0.224, 0.225),
    "data.crop": "random_resized",
    "data.flip": True,
    "data.exif_orientation": True,
}

# A few thousand of them.
SMALL_PHOTOGRAPHS = PHOTOGRAPHS | {
    "model.version": "v1.1",
    "model.geometry": "caffe",
    "data.image_size": 128,
    "data.eval_resize": 146,
    "data.crop_min_area": 0.35,
    "train.epochs": 40.0,
}

PRESETS: dict[str, dict[str, Any]] = {
    # scikit-learn's 1,797 scanned digits, 8x8 px, enlarged; no download.
    "digits": {
        "model.stem": "small",
        "model.width": 0.5,
    },
    # 70,000 articles of clothing, 28x28 px, through tensorflow-datasets. Enlarged, so that v1.1's own stem sees every
    # pixel and its pool makes the rest cheap: five minutes a run on two cores.
    "fashion_mnist": {
        "model.version": "v1.1",
        "model.geometry": "caffe",
        "model.width": 0.5,
        "data.name": "fashion_mnist",
        "data.image_size": 56,
        "data.mean": (0.286,),
        "data.std": (0.353,),
        "train.epochs": 8.0,
        "train.batch_size": 64,
    },
    # The same as weights from ImageNet want it: 64 px, three channels, Caffe's normalisation (in RGB).
    "fashion_mnist_64": {
        "data.name": "fashion_mnist",
        "data.image_size": 64,
        "data.channels": 3,
        "data.mean": (123 / 255, 117 / 255, 104 / 255),
        "data.std": (1 / 255, 1 / 255, 1 / 255),
        "data.crop_padding": 4,
        "data.flip": True,
    },
    # 60,000 photographs, 32x32 px, enlarged to twice that for v1.1's stem: twenty minutes a run on two cores. README,
    # "Data", has the command that prepares it.
    "cifar10": {
        "model.version": "v1.1",
        "model.geometry": "caffe",
        "data.name": "cifar10",
        "data.image_size": 64,
        "data.channels": 3,
        "data.mean": (0.491, 0.482, 0.447),
        "data.std": (0.247, 0.243, 0.262),
        "data.crop_padding": 8,
        "data.flip": True,
        "optimizer.peak_lr": 1e-3,
        "train.batch_size": 64,
    },
    # Ten easy classes of ImageNet, 13,000 photographs (fast.ai).
    "imagenette": {
        **SMALL_PHOTOGRAPHS,
        "data.name": "imagenette",
        "train.batch_size": 64,
    },
    # 1.28 million photographs. The solver is the one in DeepScale's Caffe repository (SGD, 0.04 at batch 512, linear to
    # 0, 68 epochs) with five epochs of warm-up; the crops are torchvision's. For accelerators.
    "imagenet": {
        "data.name": "imagenet2012",
        "data.image_size": 224,
        **PHOTOGRAPHS,
        "optimizer.name": "sgd",
        "optimizer.peak_lr": 0.04,
        "optimizer.schedule": "linear",
        "optimizer.warmup_epochs": 5.0,
        "train.epochs": 68.0,
        "train.batch_size": 512,
        "train.log_every_steps": 100,
        "train.checkpoint_every_steps": 1000,
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
    config = ConfigDict()
    for path, value in (DEFAULTS | dict(experiment or {}) | PRESETS[preset]).items():
        *groups, field = path.split(".")
        node = config
        for group in groups:
            if group not in node:
                node[group] = ConfigDict()
            node = node[group]
        node[field] = value
    return config
