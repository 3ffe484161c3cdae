"""Policies behind one adapter, so that one loop serves them all."""
