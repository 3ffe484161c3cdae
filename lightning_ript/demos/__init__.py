"""Supervised stages: LIBERO's HDF5 demonstrations, collecting and training on them."""
