"""Noise in the initial state: of training contexts alone, the same for all rollouts of one."""

import dataclasses

import numpy as np
import pytest
from toy_runs import fit, history

from lightning_ript.datamodule import RolloutDataModule
from lightning_ript.envs.toy import ToyEnvironment, ToySpec
from lightning_ript.types import Context, Perturbation

SPEC = ToySpec()
TASK = SPEC.tasks()[0]


def test_offsets_have_the_noise_asked_for():
    offsets = Perturbation(0.02, (0, 1)).offsets(5000)
    assert offsets.shape == (5000, 2)
    np.testing.assert_allclose(offsets.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(offsets.std(0), 0.02, rtol=0.05)


def test_offsets_depend_on_the_seed_alone():
    offsets = Perturbation(0.02, (0, 1)).offsets(3)
    np.testing.assert_array_equal(Perturbation(0.02, (0, 1)).offsets(3), offsets)
    assert (Perturbation(0.02, (0, 2)).offsets(3) != offsets).all()


@pytest.mark.parametrize("state", [None, np.array([0.1, 0.2, 0.3, 0.4])])
def test_the_toys_goal_moves_by_the_offset(state):
    plain = Context(TASK, 0, state, seed=3)
    perturbation = Perturbation(0.1, (5,))
    before = ToyEnvironment().reset(plain)
    after = ToyEnvironment().reset(dataclasses.replace(plain, perturbation=perturbation))
    np.testing.assert_array_equal(after["ee_pos"], before["ee_pos"])
    moved = after["joint_states"][:2] - before["joint_states"][:2]
    np.testing.assert_allclose(moved, perturbation.offsets(1)[0], rtol=1e-4)
    assert state is None or state.tolist() == [0.1, 0.2, 0.3, 0.4]


def test_training_contexts_get_noise_of_their_own():
    data = RolloutDataModule(SPEC, init_object_noise=0.05)
    contexts = [data._context(n) for n in range(20)]
    assert {c.perturbation.object_noise for c in contexts} == {0.05}
    assert len({c.perturbation.seed for c in contexts}) == 20
    assert data._context(7).perturbation == contexts[7].perturbation
    other = RolloutDataModule(SPEC, init_object_noise=0.05, seed=1)
    assert other._context(7).perturbation.seed != contexts[7].perturbation.seed


def test_without_noise_contexts_stay_as_they_are():
    assert RolloutDataModule(SPEC)._context(7).perturbation is None


def test_test_states_have_none():
    assert all(c.perturbation is None for task in SPEC.tasks() for c in SPEC.test_contexts(task))


def test_a_run_meets_the_noise_and_its_evaluation_does_not(tmp_path):
    """The weights that no iteration has changed are evaluated alike, and roll out differently."""
    still = [
        "--model.init_args.optimizer=torch.optim.SGD",
        "--model.init_args.optimizer.lr=0",
        "--trainer.limit_val_batches=1.0",
        "--data.init_args.eval_states_per_task=10",
    ]
    fit(tmp_path / "plain", 1, *still)
    fit(tmp_path / "noisy", 1, *still, "--data.init_args.init_object_noise=0.3")
    (plain,), (noisy,) = history(tmp_path / "plain"), history(tmp_path / "noisy")
    assert noisy["evaluation"]["tasks"] == plain["evaluation"]["tasks"]
    name = "rollout/episode_length"
    assert noisy["metrics"][name] != plain["metrics"][name]


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
def test_noise_that_is_none_is_refused(noise):
    with pytest.raises(ValueError, match="init_object_noise is"):
        RolloutDataModule(SPEC, init_object_noise=noise)
