"""A network from a file: how good it is, whether it equals its integers, what it looks like inside."""
