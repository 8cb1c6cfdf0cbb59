"""Fewer bytes for trained weights. Read next: `calibration.py`."""

from squeezenet_jax.compress.calibration import calibrate

__all__ = ["calibrate"]
