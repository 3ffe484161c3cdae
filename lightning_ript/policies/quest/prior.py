"""SkillGPT: the policy's distribution over skill tokens given task and observation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_ript.policies.quest.transformer import (
    AddPositions,
    EncoderLayer,
    KeyValueCache,
    Stack,
)
from lightning_ript.policies.sampling import sample_tokens


class SkillGPT(nn.Module):
    """A causal transformer over context tokens followed by skill tokens.

    Only skill tokens get positions; the first is the start token, `vocab_size`.

    Args:
        vocab_size: Number of skill tokens.
        tokens: Tokens T per decision.
        dim: Width D.
        layers: Transformer layers.
        heads: Attention heads.
        dropout: Dropout of embeddings and layers.
    """

    def __init__(
        self, vocab_size: int, tokens: int, dim: int, layers: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.start_token = vocab_size
        self.tok_emb = nn.Embedding(vocab_size + 1, dim)
        self.add_positional_emb = AddPositions(dim)
        self.decoder = Stack(*(EncoderLayer(dim, heads, dropout) for _ in range(layers)))
        self.head = nn.Linear(dim, vocab_size)
        self.drop = nn.Dropout(dropout)
        self.lnf = nn.LayerNorm(dim)

    def forward(self, context: Tensor, indices: Tensor) -> Tensor:
        """Teacher-forced logits.

        Args:
            context: (B, C, D).
            indices: The tokens to be predicted, (B, T) long.

        Returns:
            Logits of each token given those before it, (B, T, vocab).
        """
        start = torch.full_like(indices[:, :1], self.start_token)
        inputs = self.tok_emb(torch.cat([start, indices[:, :-1]], dim=1))
        x = torch.cat([context, self.add_positional_emb(inputs)], dim=1)
        x = self.decoder(self.drop(x))[:, context.shape[1] :]
        return self.head(self.lnf(x))

    @torch.no_grad()
    def sample(
        self,
        context: Tensor,
        uniforms: Tensor | None = None,
        top_k: int = 5,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Draws token sequences, one forward per token over cached keys and values.

        Args:
            context: (B, C, D).
            uniforms: (B, T) in [0, 1), each token's own noise, or None for the most likely token
                at every position.
            top_k: Number of most likely tokens to draw from.
            temperature: Divides the logits.

        Returns:
            The tokens (B, T) long, and the logits (B, T, vocab) each was drawn from.
        """
        caches = [KeyValueCache() for _ in self.decoder.layers]
        token = torch.full((len(context), 1), self.start_token, device=context.device)
        indices, logits = [], []
        for position in range(self.tokens):
            x = self.add_positional_emb(self.tok_emb(token), start=position)
            if position == 0:
                x = torch.cat([context, x], dim=1)
            x = self.drop(x)
            for layer, cache in zip(self.decoder.layers, caches, strict=True):
                x = layer(x, cache)
            token_logits = self.head(self.lnf(x[:, -1:]))
            if uniforms is None:
                token = token_logits.argmax(-1)
            else:
                noise = uniforms[:, position, None]
                token = sample_tokens(token_logits, noise, top_k, temperature)
            indices.append(token)
            logits.append(token_logits)
        return torch.cat(indices, dim=1), torch.cat(logits, dim=1)
