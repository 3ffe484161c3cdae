"""Which cases of a test `make test` leaves to `make test-all`."""

import pytest


def first_and_slow(cases):
    """Parameters of a test or fixture, of which all but the first carry the `slow` marker."""
    first, *others = cases
    return [first, *(pytest.param(case, marks=pytest.mark.slow) for case in others)]
