"""CLIP's text features, as LIBERO and QueST compute them; once per instruction, then from disk."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_ript.storage.files import cache_folder, replacing
from lightning_ript.storage.hub import explained, first_line

log = logging.getLogger(__name__)

MAX_LENGTH = 25  # tokens to pad to, LIBERO's `max_word_len`
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class TextFeatures:
    """The projected text features of a CLIP, not normalized.

    A feature depends on its own text alone and is kept in the project's cache folder, by encoder
    and text: where all are known, neither the weights nor transformers are needed.

    Args:
        encoder: The hub's id of a CLIP, or a folder that `save_pretrained` has written, with its
            tokenizer. Known features of a folder are not computed again when its files change.
        dim: D, the width that the model takes.

    Raises:
        ValueError: `encoder` is neither.
    """

    def __init__(self, encoder: str, dim: int) -> None:
        folder = Path(encoder).expanduser()
        named = encoder.startswith(("/", ".", "~"))
        self._local = named or (encoder != "" and folder.is_dir())
        if not self._local and not _HUB_ID.fullmatch(encoder):
            raise ValueError(
                f"language is {encoder!r}; it must be hashed, clip, a CLIP's id on the hub "
                "(owner/name) or a folder"
            )
        self.encoder = str(folder.absolute()) if self._local else encoder
        self.dim = dim
        self._known: dict[str, Tensor] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Returns the features (B, D) float32 of B texts.

        Raises:
            OSError: The weights are needed and cannot be had.
            ValueError: The encoder is no CLIP, its features have another width, or a text is too
                long for it.
        """
        wanted = [text for text in dict.fromkeys(texts) if text not in self._known]
        missing = [text for text in wanted if not self._file(text).is_file()]
        if missing:
            self._compute(missing)
        for text in wanted:
            feature = torch.from_numpy(np.load(self._file(text)))
            if feature.shape != (self.dim,):
                raise ValueError(
                    f"{self.encoder} makes vectors of {len(feature)} numbers, but the model takes "
                    f"{self.dim} (sizes.language_dim): choose another language or other sizes"
                )
            self._known[text] = feature
        return torch.stack([self._known[text] for text in texts])

    def _file(self, text: str) -> Path:
        folder = f"{Path(self.encoder).name}-{_digest(self.encoder)}"
        return cache_folder() / "text-features" / folder / f"{_digest(text)}.npy"

    @torch.inference_mode()
    def _compute(self, texts: Sequence[str]) -> None:
        log.info("Text features of %d instructions by %s, once.", len(texts), self.encoder)
        if not self._local:
            from huggingface_hub import hf_hub_download

            # The smallest file: the hub's client says why it cannot be had, transformers guesses.
            with explained(f"the text encoder {self.encoder}"):
                hf_hub_download(self.encoder, "config.json")
        elif not Path(self.encoder).is_dir():
            raise FileNotFoundError(f"there is no folder {self.encoder} with a text encoder")
        from transformers import AutoTokenizer, CLIPTextModelWithProjection

        try:
            with _quiet():
                tokenizer = AutoTokenizer.from_pretrained(self.encoder)
                # Of a whole CLIP's file only the text half is taken.
                loaded: Any = CLIPTextModelWithProjection.from_pretrained(
                    self.encoder, output_loading_info=True
                )
        except Exception as error:  # whatever a foreign file makes of transformers
            raise ValueError(
                f"{self.encoder} cannot be loaded as a CLIP with its tokenizer "
                f"({first_line(error)}): choose another text encoder"
            ) from error
        model, report = loaded
        if report["missing_keys"]:  # which transformers fills with random numbers
            raise ValueError(
                f"{self.encoder} is no CLIP: it has no {min(report['missing_keys'])}; choose "
                "another text encoder"
            )
        model = model.float().eval()
        for text in texts:
            # One by one, so that a feature does not depend on the texts beside it.
            tokens = tokenizer(
                text,
                add_special_tokens=True,
                max_length=MAX_LENGTH,
                padding="max_length",
                return_attention_mask=True,
                return_tensors="pt",
            )
            length, limit = tokens["input_ids"].shape[1], model.config.max_position_embeddings
            if length > limit:
                raise ValueError(
                    f"the instruction {text!r} has {length} tokens, but {self.encoder} reads at "
                    f"most {limit}: shorten it"
                )
            feature = model(tokens["input_ids"], tokens["attention_mask"]).text_embeds[0]
            with replacing(self._file(text)) as draft:
                np.save(draft, feature.numpy())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' warnings about the image half, which is left out on purpose."""
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
