"""Small files out of trained networks."""
