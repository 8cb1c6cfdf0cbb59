"""Many runs: planned, run here or on a Slurm cluster, read back and compared."""
