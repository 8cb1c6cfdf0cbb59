"""How `compressed.py` codes layers: `rans` codes symbols, `contexts` gives their probabilities, `layers` says which."""
