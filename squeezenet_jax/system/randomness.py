"""What each random number is for. Standard library only.

Every random draw is a pure function of (seed, purpose, step or example), so nothing random is ever stored: a resumed
run, another number of devices or a reader in a debugger draws the same numbers. In jax that is
`fold_in(fold_in(key(seed), purpose), step)`; in NumPy `default_rng([seed, purpose, epoch])`.
"""

import enum


class Purpose(enum.IntEnum):
    INIT = 0  # kernels at the start
    SHUFFLE = 1  # the order of the examples in an epoch
    AUGMENT = 2  # padded crops and flips on the device, per step and example
    DROPOUT = 3  # per step and example
    CROP = 4  # random-resized crops on the host, per epoch and example
    MIXUP = 5  # shares of two images, per step and example
    CUTOUT = 6  # per step and example
