"""Images and labels, without jax.

`catalog` knows what exists, `sources` reads it, `batches` makes batches by step and `loader` ahead of time; `prepare/`
turns folders and archives into TFDS directories.
"""
