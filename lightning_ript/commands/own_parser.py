"""The parser of the program's own commands."""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace

from lightning_ript.commands.errors import CommandParser
from lightning_ript.running.paths import with_expanded_paths


class OwnParser(CommandParser):
    """Replaces `~` and variables in what it has read."""

    def parse_args(  # type: ignore[override]
        self, *arguments: Any, **settings: Any
    ) -> Namespace:
        """As jsonargparse's."""
        found: Namespace = with_expanded_paths(super().parse_args(*arguments, **settings))
        return found
