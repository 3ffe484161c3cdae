"""Instructions as the tokens of a vision-language model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from tokenizers import Tokenizer
from torch import Tensor

from lightning_ript.storage.hub import local_folder

_KEPT = 4096  # prompts whose tokens are remembered


class Prompts:
    """Turns texts into tokens, each only once.

    Uses the tokenizer's own `tokenizer.json` through the `tokenizers` library: what `transformers`
    makes of the other files has changed with its versions.

    Args:
        folder: Holds `tokenizer.json`.
        length: Tokens of a prompt at most; what is longer is cut off at its end.
        start: Token that a prompt begins with, if any.
        padding: Token that fills it up.

    Raises:
        FileNotFoundError: There is no `tokenizer.json`.
    """

    def __init__(self, folder: Path, length: int, start: int | None, padding: int) -> None:
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"{folder} has no tokenizer.json: name the folder of the tokenizer that the policy "
                "was trained with (model.policy.tokenizer)."
            )
        self._tokenizer = Tokenizer.from_file(str(file))
        # A file may have been saved with either.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.length, self._start, self._padding = length, start, padding
        # Bounded, since pi0.5 has the robot's state in its prompts.
        self.tokens = lru_cache(_KEPT)(lambda text: self._encoded(text)[: self.length])

    def _encoded(self, text: str) -> list[int]:
        """All tokens of one text."""
        found = self._tokenizer.encode(text, add_special_tokens=False).ids
        return found if self._start is None else [self._start, *found]

    def longest(self, texts: Sequence[str]) -> int:
        """Tokens of the longest of these texts; warns of those that are not wholly encoded."""
        name = getattr(self._tokenizer.model, "unk_token", None)
        unknown = None if name is None else self._tokenizer.token_to_id(name)
        found = {text: self._encoded(text) for text in texts}
        for text, tokens in found.items():
            if unknown in tokens:
                rank_zero_warn(f"The policy's tokenizer does not know all words of {text!r}.")
            if len(tokens) > self.length:
                rank_zero_warn(f"The policy sees no more than {self.length} tokens of {text!r}.")
        return min(self.length, max(map(len, found.values())))

    def batch(self, texts: Sequence[str], length: int | None = None) -> tuple[Tensor, Tensor]:
        """Tokens of B texts, padded at the end.

        Args:
            texts: B texts.
            length: Tokens L of each; by default those of the longest.

        Returns:
            Tokens (B, L) int64, and which are there (B, L) bool.

        Raises:
            ValueError: A text is longer.
        """
        rows = [self.tokens(text) for text in texts]
        longest = max(len(row) for row in rows)
        length = longest if length is None else length
        if longest > length:
            raise ValueError(
                f"a prompt has {longest} tokens, but room is for {length}: prepare the policy for "
                "all of its tasks before it acts."
            )
        tokens = torch.full((len(rows), length), self._padding)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for row, found in enumerate(rows):
            tokens[row, : len(found)] = torch.tensor(found)
            mask[row, : len(found)] = True
        return tokens, mask


def published_beside(places: Sequence[Path], name: str, files: Sequence[str]) -> Path:
    """The folder of a tokenizer that a checkpoint names: the first that is there, or the hub's.

    Args:
        places: Where it may be on this machine.
        name: Its name on the hub.
        files: What of it is needed.

    Raises:
        OSError: The hub has no such files, or can neither be reached nor has been asked before.
    """
    for place in places:
        if place.is_dir():
            return place
    return local_folder(name if "://" in name else f"hf://{name}", files)


def with_newline(task: str) -> str:
    """A task as pi0 and SmolVLA were trained on it."""
    return task if task.endswith("\n") else f"{task}\n"
