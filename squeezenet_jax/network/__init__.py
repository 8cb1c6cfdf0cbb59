"""The network: tables (`architecture`), the mathematics (`model`), parameters at step 0, and how a CPU computes it."""
