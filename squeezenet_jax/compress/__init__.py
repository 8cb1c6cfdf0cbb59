"""Making trained weights small: magnitude and k-means (`sharing.py`). What comes out is `QuantizedLayer`s."""
