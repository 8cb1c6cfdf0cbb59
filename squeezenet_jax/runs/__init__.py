"""The files of a run: its directory (`directory`) and its checkpoints (`checkpoint`)."""
