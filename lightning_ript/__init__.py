"""RIPT-VLA on PyTorch Lightning.

Nothing is imported here: simulator workers import this package and must not load torch.
"""
