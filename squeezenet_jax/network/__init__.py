"""The network: tables (`architecture`), rows (`trace`), the mathematics (`model`), step 0, and its form on a CPU."""
