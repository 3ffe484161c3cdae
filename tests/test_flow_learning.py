"""A flow-matching policy learns the toy by both kinds of probabilities, from random weights."""

import pytest
from toy_runs import history

from lightning_ript.cli import main


@pytest.mark.parametrize(
    ("probability", "iterations", "lr", "reached"),
    # Flow-Noise explores with a third of the deviation, and takes several times as long.
    [
        ("flow_sde", 5, 0.006, 0.65),
        pytest.param("flow_noise", 12, 0.003, 0.5, marks=pytest.mark.slow),
    ],
)
def test_it_learns(probability, iterations, lr, reached, tmp_path):
    main(
        [
            *("fit", "--config=configs/toy.yaml", f"--run_dir={tmp_path}"),
            *("--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0"),
            *("--model.policy=toy_flow.ToyFlow", f"--model.policy.probability={probability}"),
            *("--model.passes=20", f"--model.optimizer.lr={lr}"),
            *("--data.groups_per_iteration=64", f"--trainer.max_epochs={iterations}"),
        ]
    )
    rates = [entry["metrics"]["rollout/success_rate"] for entry in history(tmp_path)]
    assert rates[0] < 0.3
    assert sum(rates[-2:]) / 2 > reached
