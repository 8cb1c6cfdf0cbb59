"""What the seeds and the images of a comparison can show. Read next: `evidence.py`."""
