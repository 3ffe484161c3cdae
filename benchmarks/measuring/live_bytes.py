"""Memory that tensors take while a computation runs, on any device, the meta device included."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made within it and still there.

    Attributes:
        now: Bytes at the moment.
        peak: The most at any moment.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs an operation, and counts what it has made."""
        before = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if _is_tensor(t)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if _is_tensor(tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in before and id(storage) not in self._known:
                    self._count(storage)
        self.peak = max(self.peak, self.now)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def gone(_: Any) -> None:
            self.now -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)
        self.now += size


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most bytes that tensors made by a function take at once.

    Attention on the meta device is counted as the fused kernels of CPUs and GPUs do it: torch
    itself would choose the plain way there, which keeps a matrix of queries by keys.
    """
    with fused_attention(), LiveBytes() as live:
        run()
    return live.peak


@contextmanager
def fused_attention() -> Iterator[None]:
    """Lets attention on the meta device keep what the fused kernels keep."""
    plain = torch.nn.functional.scaled_dot_product_attention

    def attention(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        if query.device.type != "meta" or args or kwargs.get("enable_gqa"):
            return plain(query, key, value, *args, **kwargs)
        mask = kwargs.get("attn_mask")
        if mask is not None:  # as torch does before its kernels
            mask = torch.zeros_like(mask, dtype=query.dtype)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, kwargs.get("is_causal", False), attn_mask=mask
        )[0]

    with patch("torch.nn.functional.scaled_dot_product_attention", attention):
        yield
