"""Policies act at the precision that they learn at."""

from types import SimpleNamespace

import pytest
import torch
from toy_runs import fit, history, weights

from lightning_ript.module import RIPTLightningModule
from lightning_ript.policies.flow.adapter import FlowPolicy
from lightning_ript.policies.openvla_oft.adapter import OpenVLAPolicy
from lightning_ript.policies.quest import QueSTPolicy
from lightning_ript.policies.toy import ToyPolicy

FIRST_STEP = [
    "--model.init_args.passes=1",
    "--model.init_args.episodes_per_minibatch=999",
    "--trainer.limit_val_batches=1.0",
    "--data.init_args.eval_states_per_task=2",
]


@pytest.mark.parametrize("critic", [[], ["--model.init_args.critic={}"]], ids=["", "critic"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_the_first_step_starts_where_the_rollouts_were_drawn(tmp_path, precision, critic):
    fit(tmp_path, 1, *FIRST_STEP, *critic, f"--trainer.precision={precision}")
    (entry,) = history(tmp_path)
    assert entry["metrics"]["train/ratio"] == pytest.approx(1, abs=1e-6)
    assert entry["metrics"]["train/approx_kl"] == pytest.approx(0, abs=1e-8)  # at no token
    assert entry["metrics"]["train/clip_fraction"] == 0
    assert entry["metrics"]["train/grad_norm"] > 0


def test_scaled_gradients_are_refused():
    module = RIPTLightningModule(ToyPolicy())
    module.trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=object()))
    with pytest.raises(ValueError, match="set bf16-mixed"):
        module.setup("fit")


def test_rounded_parameters_are_refused_where_a_policy_does_not_stand_them():
    policy = ToyPolicy()
    policy.roundable = False
    module = RIPTLightningModule(policy)
    for precision in ("bf16-mixed", "32-true"):
        module.trainer = SimpleNamespace(precision_plugin=SimpleNamespace(precision=precision))
        module.setup("fit")
    module.trainer = SimpleNamespace(precision_plugin=SimpleNamespace(precision="bf16-true"))
    with pytest.raises(ValueError, match="parts of ToyPolicy need 32 bits: set bf16-mixed"):
        module.setup("fit")
    assert not QueSTPolicy.roundable
    assert not OpenVLAPolicy.roundable
    assert not FlowPolicy.roundable


def test_precision_is_that_of_the_trainer(tmp_path):
    names = ["32-true", "bf16-mixed"]
    runs = [fit(tmp_path / n, 1, *FIRST_STEP, f"--trainer.precision={n}") for n in names]
    full, half = (history(tmp_path / n)[0]["metrics"]["train/entropy"] for n in names)
    assert 1e-6 < abs(full - half) < 0.05
    for run in runs:
        assert all(value.dtype == torch.float32 for value in weights(run).values())
