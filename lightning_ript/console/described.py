"""What a command says of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import docstring_parser


def described(function: Callable[..., Any]) -> str:
    """A function's docstring up to its arguments, which have help of their own."""
    return docstring_parser.parse_from_object(function).description or ""
