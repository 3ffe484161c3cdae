"""Instructions as the language model's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

BOS_TOKEN = 1
SPACE_TOKEN = 29871
"""Llama's lone word start. Training put it before the actions, so a prompt has to end with it."""
PAD_TOKEN = 32000


class PromptTokenizer:
    """Turns instructions into prompts, each only once.

    Uses the checkpoint's own `tokenizer.json` through the `tokenizers` library: what `transformers`
    makes of the other files has changed with its versions.

    Args:
        folder: A checkpoint's folder.

    Raises:
        OSError: It has no `tokenizer.json`.
    """

    def __init__(self, folder: str | Path) -> None:
        file = Path(folder) / "tokenizer.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"{folder} has no tokenizer.json: copy it there from openvla/openvla-7b, or give "
                "the whole folder of a checkpoint"
            )
        self._tokenizer = Tokenizer.from_file(str(file))
        # A file may have been saved with either.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokens: dict[str, list[int]] = {}

    def tokens(self, instruction: str) -> list[int]:
        """The prompt of one instruction, from the start token to the space that ends it."""
        if instruction not in self._tokens:
            tokens = self._tokenizer.encode(prompt(instruction)).ids
            # Whether the file itself says to begin with the start token depends on who saved it.
            if tokens[:1] != [BOS_TOKEN]:
                tokens.insert(0, BOS_TOKEN)
            if tokens[-1] != SPACE_TOKEN:
                tokens.append(SPACE_TOKEN)
            self._tokens[instruction] = tokens
        return self._tokens[instruction]

    def longest(self, instructions: Sequence[str]) -> int:
        """Tokens of the longest prompt.

        That of a run's tasks is the `length` which lets decisions of any of them be one batch.
        """
        return max(len(self.tokens(instruction)) for instruction in instructions)

    def __call__(
        self, instructions: Sequence[str], length: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Prompts for a batch, padded at the end.

        Args:
            instructions: B instructions.
            length: Tokens L per prompt; by default those of the longest.

        Returns:
            Token indices and attention mask (1 for tokens, 0 for padding), (B, L) int64 each.

        Raises:
            ValueError: A prompt is longer than `length`.
        """
        prompts = [self.tokens(instruction) for instruction in instructions]
        longest = self.longest(instructions)
        length = longest if length is None else length
        if longest > length:
            raise ValueError(
                f"a prompt has {longest} tokens, but room is for {length}: prepare the policy for "
                "all of its tasks before it acts"
            )
        lengths = torch.tensor([len(tokens) for tokens in prompts])
        padded = [tokens + [PAD_TOKEN] * (length - len(tokens)) for tokens in prompts]
        mask = torch.arange(length) < lengths[:, None]
        return torch.tensor(padded), mask.long()


def prompt(instruction: str) -> str:
    """The question that the model was trained to answer."""
    return f"In: What action should the robot take to {instruction.lower()}?\nOut:"
