"""The commands of `python -m squeezenet_jax`, one file each.

Each has `add_arguments(parser)`, which imports nothing heavy, and `run(args) -> int`.
"""
