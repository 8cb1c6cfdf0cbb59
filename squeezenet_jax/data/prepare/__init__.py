"""Folders and archives of images to TFDS data sets, without TensorFlow.

`layouts` finds the images of a SOURCE, `images` checks and converts one, `writer` writes the data set and can be
killed at any moment; `python -m squeezenet_jax prepare` is its command. No jax here.
"""
