"""Two processes with all of a flow-matching policy, or with half of it each, learn as one does."""

import shutil

import pytest
import torch
from slow_cases import first_and_slow
from test_hdf5 import SETTINGS, episode
from two_processes import begin, finish, on_two, strayed

from lightning_ript.cli import main
from lightning_ript.demos.hdf5 import DemonstrationWriter
from lightning_ript.envs.libero.suites import suite_tasks
from lightning_ript.policies.smolvla.create import SmallSizes, new_smolvla

RANKS = ["ddp", "fsdp2"]
TINY = SmallSizes(
    image=16, patch=4, vision_width=24, vision_layers=1, width=32, layers=2, expert_width=24
)
WAYS = {
    "expert": ["--model.policy.gradient_checkpointing=true"],
    "vectors": ["--model.policy.train=vectors"],
    "everything": [
        "--model.policy.train=everything",
        "--model.policy.probability=flow_noise",
        "--model.policy.ratio=action",
    ],
    "lora": ["--model.policy.lora={r: 2, alpha: 4}", "--model.policy.noisy_steps=all"],
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smolvla")
    task = suite_tasks("libero_object")[0]
    file = folder / f"{task.name}_demo.hdf5"
    writer = DemonstrationWriter(file, task, 8, SETTINGS)
    writer.append(episode(0, steps=20))
    new_smolvla(folder / "tiny", [str(file)], TINY, steps=3)
    return folder / "tiny"


def arguments(published, run_dir, iterations, *more):
    return [
        "fit",
        "--config=configs/flow/ript.yaml",
        "--config=configs/smolvla/small/policy.yaml",
        "--seed_everything=0",
        f"--run_dir={run_dir}",
        f"--trainer.max_epochs={iterations}",
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.callbacks+=sharding_probe.Watch",
        f"--trainer.callbacks.folder={run_dir}",
        f"--model.policy.checkpoint={published}",
        "--model.optimizer=torch.optim.SGD",
        "--model.optimizer.lr=0.02",
        "--model.optimizer.momentum=0.5",
        "--model.passes=2",
        # Several passes per step; ranks have different numbers of decisions.
        "--model.episodes_per_minibatch=6",
        "--model.decisions_per_microbatch=3",
        "--data.environment=openvla_probe.ReachSpec",
        "--data.rollouts_per_context=4",
        "--data.groups_per_iteration=3",
        "--data.num_workers=0",
        *more,
    ]


def checkpoint(run_dir):
    return torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)


def gradients(run_dir, rank):
    return torch.load(run_dir / f"gradients{rank}.pt", weights_only=True)


@pytest.fixture(scope="module", params=first_and_slow(WAYS))
def runs(request, published, tmp_path_factory):
    """A run of each kind over two iterations, and what one process has after the first."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("alone", *RANKS)}
    settings = WAYS[request.param]
    for name in RANKS:
        finish(begin(arguments(published, folders[name], 2, *settings, *on_two(name))))
    main(arguments(published, folders["alone"], 1, *settings))
    shutil.copytree(folders["alone"], folders["alone"] / "first")
    main(arguments(published, folders["alone"], 2, *settings))
    return folders


@pytest.mark.parametrize("name", RANKS)
def test_the_first_gradient_is_that_of_one_process(runs, name):
    alone = gradients(runs["alone"] / "first", 0)
    assert max(g.abs().max() for g in alone.values()) > 1e-4
    for rank in range(2):
        theirs = gradients(runs[name], rank)
        assert theirs.keys() == alone.keys()
        for parameter, gradient in theirs.items():
            torch.testing.assert_close(
                gradient, alone[parameter], rtol=1e-5, atol=1e-6, msg=parameter
            )


@pytest.mark.parametrize("name", RANKS)
def test_after_two_iterations_so_is_the_policy(runs, name):
    alone, shared = checkpoint(runs["alone"]), checkpoint(runs[name])
    first = checkpoint(runs["alone"] / "first")["state_dict"]
    assert max((v - first[n]).abs().max() for n, v in alone["state_dict"].items()) > 1e-4
    assert alone["state_dict"].keys() == shared["state_dict"].keys()
    for parameter, value in alone["state_dict"].items():
        theirs = shared["state_dict"][parameter]
        torch.testing.assert_close(value, theirs, rtol=1e-5, atol=1e-5, msg=parameter)
    assert alone["RolloutDataModule"] == shared["RolloutDataModule"]
    assert alone["policy"] == shared["policy"]


@pytest.mark.slow
def test_a_bfloat16_backbone_gives_nearly_the_same_gradient(published, tmp_path):
    one_step = ["--model.passes=1", "--model.episodes_per_minibatch=999"]
    more = ["--model.policy.precision=bfloat16", *one_step]
    finish(begin(arguments(published, tmp_path / "two", 1, *more, *on_two("fsdp2"))))
    main(arguments(published, tmp_path / "one", 1, *more))
    alone = gradients(tmp_path / "one", 0)
    for rank in range(2):
        theirs = gradients(tmp_path / "two", rank)
        assert theirs.keys() == alone.keys()
        assert {g.dtype for g in theirs.values()} == {torch.float32}
        # Decisions meet others in a batch than when they were made, which rounds them otherwise.
        assert strayed(theirs, alone) < 1e-3
