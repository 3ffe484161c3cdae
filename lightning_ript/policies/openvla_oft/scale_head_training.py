"""Training the scale head: how far the policy's actions are from demonstrated ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lightning_ript.console.progress import progress_bar
from lightning_ript.distributed.sharding import whole
from lightning_ript.policies.openvla_oft import laplace
from lightning_ript.policies.openvla_oft.checkpoint import assign
from lightning_ript.policies.openvla_oft.continuous import OpenVLAOFTPolicy
from lightning_ript.policies.openvla_oft.heads import LaplaceScaleHead

Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]
"""Features (B, 8, 7 D) and absolute errors (B, 8, 7), anew at every call."""


def train_scale_head(
    head: LaplaceScaleHead, training: Batches, test: Batches, epochs: int, lr: float, quiet: bool
) -> None:
    """Lowers the negative log-likelihood of demonstrated actions; the mean stays as it is.

    Args:
        head: The head that learns.
        training: What it learns from.
        test: What was held out, for the log; may be empty.
        epochs: Passes over the training batches.
        lr: Learning rate of Adam.
        quiet: Whether to show no progress.
    """
    before = mean_nll(head, test)
    optimizer = torch.optim.Adam(head.parameters(), lr)
    for epoch in range(epochs):
        bar = progress_bar(desc=f"scale head, epoch {epoch}", unit="step", disable=quiet)
        with bar:
            for features, errors in training():
                loss = nll(head, features, errors).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                bar.update()
                bar.set_postfix_str(f"NLL {loss.item():.3f}", refresh=False)
    after = mean_nll(head, test)
    if before is not None:
        rank_zero_info(
            f"Scale head: negative log-likelihood per action dimension of demonstrations held "
            f"out, {before:.3f} -> {after:.3f}"
        )


def demonstrated_batches(
    policy: OpenVLAOFTPolicy, loader: Any, cache_gib: float, seed: int
) -> Batches:
    """What the head sees of a loader's steps, computed once if it fits into memory.

    Args:
        policy: The policy, which does not change.
        loader: Batches of demonstrations.
        cache_gib: Memory for what is kept, in GiB.
        seed: Of the order in which kept batches come again.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    size, fits = 0.0, True
    generator = torch.Generator().manual_seed(seed)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal size, fits
        if kept and fits:
            for i in torch.randperm(len(kept), generator=generator).tolist():
                features, errors = kept[i]
                yield features.to(policy.device), errors.to(policy.device)
            return
        for batch in loader:
            features, errors = policy.demonstrated(batch)
            size += (features.nbytes + errors.nbytes) / 2**30
            if size > cache_gib:
                fits = False
                kept.clear()
            if fits:
                kept.append((features.cpu(), errors.cpu()))
            yield features, errors

    return batches


def trainable_copy(head: LaplaceScaleHead) -> LaplaceScaleHead:
    """A head of its own with the same weights, whole.

    Not a deepcopy, which would take along what FSDP has hung on the module.
    """
    with torch.device("meta"):
        fresh = LaplaceScaleHead(head.log_b_head.in_features)
    for name, value in head.named_parameters():
        assign(fresh, name, value=whole(value.detach()), device=value.device, dtype=value.dtype)
    return fresh.requires_grad_(True)


def nll(head: LaplaceScaleHead, features: Tensor, errors: Tensor) -> Tensor:
    """Negative log-likelihood of each action dimension (B, 8, 7).

    Args:
        head: The scale head.
        features: (B, 8, 7 D).
        errors: Distance from the mean, (B, 8, 7).
    """
    log_scale = head(features.to(head.log_b_head.weight.dtype)).float()
    return -laplace.log_prob(errors, torch.zeros_like(errors), log_scale)


@torch.no_grad()
def mean_nll(head: LaplaceScaleHead, batches: Batches) -> float | None:
    """Mean over all steps; None without any."""
    values = [nll(head, features, errors).flatten() for features, errors in batches()]
    return torch.cat(values).mean().item() if values else None
