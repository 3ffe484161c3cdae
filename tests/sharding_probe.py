"""Notes what the ranks of a run hold and send to each other."""

import json
from collections import Counter
from pathlib import Path

import lightning.pytorch.strategies.ddp as lightning_ddp
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch.distributed.tensor import DTensor

from lightning_ript.distributed.sharding import whole


class Watch(Callback):
    """Writes `gradients<rank>.pt`, of the first step, and `sent<rank>.json` to a folder."""

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.sent = Counter()
        self.gradients = None

    def setup(self, trainer, pl_module, stage):
        # What FSDP2 calls has another name in later versions of torch.
        self._count("gathers", dist, ["all_gather_single", "all_gather_into_tensor"])
        self._count("reductions", dist, ["reduce_scatter_single", "reduce_scatter_tensor"])
        syncs = lambda model, *_: model.require_backward_grad_sync  # noqa: E731
        self._count("ddp_reductions", lightning_ddp, ["prepare_for_backward"], syncs)

    def _count(self, what, module, names, when=lambda *_: True):
        name = next(name for name in names if hasattr(module, name))
        function = getattr(module, name)

        def counted(*args, **kwargs):
            self.sent[what] += bool(when(*args))
            return function(*args, **kwargs)

        setattr(module, name, counted)

    def on_train_epoch_start(self, trainer, pl_module):
        self._at_rest(pl_module)

    def on_validation_end(self, trainer, pl_module):
        self._at_rest(pl_module)

    def _at_rest(self, pl_module):
        parameters = list(pl_module.policy.parameters())
        held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters)
        self.sent["resting_values"] = max(held, self.sent["resting_values"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.sent["microbatches"] += 1
        self.sent["steps"] += batch.is_last

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if self.gradients is not None:
            return
        sent = Counter(self.sent)
        named = pl_module.policy.named_parameters()
        self.gradients = {n: whole(p.grad) for n, p in named if p.grad is not None}
        self.sent = sent  # not what this took
        torch.save(self.gradients, self.folder / f"gradients{trainer.global_rank}.pt")

    def on_train_end(self, trainer, pl_module):
        path = self.folder / f"sent{trainer.global_rank}.json"
        path.write_text(json.dumps(self.sent))
