"""What cannot learn is noticed: each tripwire is provoked."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import imageio.v3 as iio
import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from other_robot import OtherSpec
from test_other_robot import ript
from test_other_robot import run as run_other
from toy_runs import history

from lightning_ript.callbacks import RollBack
from lightning_ript.callbacks.tripwires import oddities
from lightning_ript.cli import main
from lightning_ript.envs.toy import ToySpec
from lightning_ript.evaluation import SuccessRate
from lightning_ript.policies.agreement import allowed_log_ratio, check_agreement
from lightning_ript.policies.toy import ToyPolicy
from lightning_ript.types import Context


class ForgetfulPolicy(ToyPolicy):
    """Scores another temperature than it acts with."""

    def log_prob(self, record):
        log_probs, entropy = super().log_prob(record)
        return log_probs - 0.3, entropy


class DivergingPolicy(ToyPolicy):
    """Gives infinite scores once it learns from the second minibatch."""

    scored = 0

    def log_prob(self, record):
        log_probs, entropy = super().log_prob(record)
        self.scored += 1
        return log_probs * (float("nan") if self.scored > 2 else 1.0), entropy


class Hopeless(ToySpec):
    """Nothing counts as a success."""

    def make(self):
        environment = super(type(self), self).make()
        step_chunk = environment.step_chunk
        environment.step_chunk = lambda actions: replace(step_chunk(actions), success=False)
        return environment


class HopelessRobot(OtherSpec):
    """With a camera, and 20 test states."""

    make = Hopeless.make

    def test_contexts(self, task):
        return [Context(task, i, seed=10_000 + i) for i in range(20)]


HOPELESS = "--data.init_args.environment=test_tripwires.Hopeless"


def run(tmp_path, *arguments):
    return main(["fit", "--config=configs/toy.yaml", f"--run_dir={tmp_path}", *arguments])


def test_the_bound_follows_from_the_precision():
    policy = torch.nn.Linear(2, 2)
    assert allowed_log_ratio(policy) == 0.01
    assert allowed_log_ratio(policy, torch.bfloat16) == 0.5
    assert allowed_log_ratio(policy.half()) == 0.0625
    assert allowed_log_ratio(policy.bfloat16()) == 0.5


def test_what_does_not_count_is_not_compared():
    old = torch.tensor([[0.0, 0.0]])
    new = torch.tensor([[0.005, 9.0]])
    check_agreement(new, old, torch.tensor([[1.0, 0.0]]), 0.01)
    for value in (0.02, float("nan")):
        wrong = torch.tensor([[value, 0.0]])
        with pytest.raises(ValueError, match="other probabilities than act"):
            check_agreement(wrong, old, torch.ones(1, 2), 0.01)


def test_scores_that_are_not_those_of_acting_are_refused(tmp_path, capsys):
    policy = "--model.init_args.policy=test_tripwires.ForgetfulPolicy"
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, policy, "--trainer.max_epochs=1")
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "differ by up to 0.3 (mean 0.3), where 0.01 is allowed" in said
    assert "dropout" in said
    run(tmp_path, policy, "--trainer.max_epochs=1", "--model.init_args.max_first_log_ratio=0.5")


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path, capsys):
    policy = "--model.init_args.policy=test_tripwires.DivergingPolicy"
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, policy, "--trainer.max_epochs=1")
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "Iteration 1: the gradient of the parameter group" in said
    assert "is not finite, so the optimizer did not step" in said
    kept = torch.load(tmp_path / "diverged_rank0.pt")
    assert kept["old_log_probs"].isfinite().all()
    assert len(kept["record"]["indices"]) == len(kept["advantages"])


def test_an_evaluation_without_success_names_what_to_check(tmp_path):
    with pytest.warns(UserWarning, match=r"None of \d+ evaluation episodes succeeded: check the"):
        main(["validate", "--config=configs/toy.yaml", f"--run_dir={tmp_path}", HOPELESS])


def test_what_the_policy_saw_is_shown(tmp_path):
    config = ript()
    config["data"]["init_args"]["environment"] = "test_tripwires.HopelessRobot"
    with pytest.warns(UserWarning, match=r"validate_seen\.png shows what the policy saw"):
        run_other(tmp_path, "blind", config, "validate")
    picture = iio.imread(tmp_path / "blind/evaluation/validate_seen.png")
    robot = HopelessRobot()
    first = robot.make().reset(robot.test_contexts(robot.tasks()[0])[0])["front"]
    assert picture.shape == (3 * 16, 16, 3)  # 16 steps are three decisions of six
    assert (picture[:16] == first).all()


def test_odd_actions_are_named():
    fine = torch.tensor([[0.5, 1.0], [-0.9, -1.0]])
    assert oddities(fine) == ""
    assert "Of the actions' numbers 25% lie outside" in oddities(torch.tensor([[0.5, 1], [-3, -1]]))
    assert "never changes its sign" in oddities(fine.abs())


def test_a_first_iteration_without_a_mixed_group_names_what_to_check(tmp_path):
    with pytest.warns(UserWarning, match="If it always fails, check the statistics"):
        run(tmp_path, HOPELESS, "--data.init_args.max_contexts=40")


def test_steps_that_stay_too_large_are_warned_about(tmp_path):
    settings = ["--trainer.callbacks+=lightning_ript.callbacks.Tripwires",
                "--trainer.callbacks.max_kl=1e-9", "--trainer.callbacks.patience=2"]  # fmt: skip
    with pytest.warns(UserWarning, match="For 2 iterations steps have been too large"):
        run(tmp_path, "--trainer.max_epochs=2", *settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*steps have been too large")
        run(tmp_path / "short", "--trainer.max_epochs=1", *settings)


class Ruin(Callback):
    """Turns the policy around before the second iteration's evaluation."""

    def on_validation_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            with torch.no_grad():
                pl_module.policy.net[-1].weight.neg_()
                pl_module.policy.net[-1].bias.neg_()


def test_success_that_collapses_is_warned_about_and_rolled_back(tmp_path):
    settings = [
        "--trainer.callbacks+=lightning_ript.callbacks.RollBack",
        "--trainer.callbacks.lr_factor=0.1",
        "--trainer.callbacks+=test_tripwires.Ruin",
    ]
    with (
        pytest.warns(UserWarning, match="Success has fallen to"),
        pytest.warns(UserWarning, match="Iteration 2: success has fallen below 50% of its best"),
    ):
        run(tmp_path, "--trainer.max_epochs=3", *settings)
    rates, success = (
        [entry["metrics"][name] for entry in history(tmp_path)]
        for name in ("train/lr", "val/success_rate")
    )
    assert rates == pytest.approx([0.01, 0.01, 0.001])
    assert success[1] < success[0] / 2
    assert success[2] >= 0.9 * success[0]


def test_rolling_back_needs_a_best_checkpoint(tmp_path, capsys):
    given = "--trainer.callbacks+=lightning_ript.callbacks.RollBack"
    with pytest.raises(SystemExit):
        run(tmp_path, given, "--trainer.callbacks.fraction=2")
    assert "RollBack has fraction 2" in capsys.readouterr().err
    trainer = L.Trainer(callbacks=[RollBack()], logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"RollBack needs best\.ckpt: add BestCheckpoint"):
        trainer.callbacks[0].setup(trainer, SimpleNamespace(success_rate=SuccessRate()), "fit")
