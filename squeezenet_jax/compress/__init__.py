"""Making trained weights small: pruning and sharing by magnitude and k-means (`sharing.py`). What comes out is `QuantizedLayer`s."""
