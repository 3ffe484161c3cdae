"""Simulators: a protocol, a pool of worker processes, and the environments themselves."""
