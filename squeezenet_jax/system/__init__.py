"""Plumbing that knows nothing of networks: errors, files that appear whole, devices, processes, randomness, hangs."""
