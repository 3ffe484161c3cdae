"""Ablations that replace a part of the loop, by subclass or by import path."""
