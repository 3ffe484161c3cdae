"""The whole path of flow-matching policies on the simulator, from tiny folders of LeRobot's."""

import json

import pytest
import torch
from safetensors.torch import load_file
from staged_probe import StagedSpec
from test_flow_golden import GOLDENS

from lightning_ript.cli import main
from lightning_ript.envs.libero.assets import cache_folder
from lightning_ript.envs.libero.standins import build_standins
from lightning_ript.storage.run_directory import evaluation_path

pytestmark = [
    pytest.mark.libero,
    pytest.mark.skipif(
        not (GOLDENS / "smolvla").is_dir(),
        reason=f"no golden tensors in {GOLDENS}: set LIGHTNING_RIPT_GOLDENS",
    ),
]
STAGED = f"{StagedSpec.__module__}.{StagedSpec.__name__}"
# Config, and what is tried with it: each way of having probabilities, and each of learning.
RUNS = {
    "smolvla": ("smolvla/one_24gb_gpu", ["--model.policy.train=everything"], "float32"),
    "pi0": ("pi0/libero_object", ["--model.policy.lora={r: 2, alpha: 4}"], "bfloat16"),
    "pi05": ("pi05/libero_object", ["--model.policy.probability=flow_noise"], "bfloat16"),
}


def arguments(kind, command, run_dir, iterations, *more):
    config, settings, precision = RUNS[kind]
    heads = [] if kind == "smolvla" else ["--model.policy.vision_heads=3"]
    return [
        command,
        "--config=configs/flow/ript.yaml",
        f"--config=configs/{config}.yaml",
        *settings,
        *heads,
        f"--model.policy.checkpoint={GOLDENS / kind}",
        f"--model.policy.precision={precision}",
        "--model.policy.steps=2",
        "--model.optimizer.lr=0.001",
        "--model.passes=1",
        "--model.episodes_per_minibatch=4",
        f"--run_dir={run_dir}",
        f"--trainer.max_epochs={iterations}",
        "--trainer.check_val_every_n_epoch=1",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        f"--data.environment={STAGED}",
        "--data.environment.suite=libero_object",
        "--data.environment.task_subset=[0]",
        f"--data.environment.assets={build_standins(cache_folder())}",
        "--data.environment.image_size=64",
        "--data.environment.render=light",
        "--data.environment.max_steps=10",
        "--data.rollouts_per_context=4",
        "--data.groups_per_iteration=2",
        "--data.num_workers=2",
        "--data.eval_states_per_task=2",
        *more,
    ]


@pytest.mark.parametrize("kind", ["smolvla", pytest.param("pi0", marks=pytest.mark.slow), "pi05"])
def test_ript_resume_validation_export(kind, tmp_path):
    run, last = tmp_path / "run", tmp_path / "run/checkpoints/last.ckpt"
    main(arguments(kind, "fit", run, 1))
    first = torch.load(last, weights_only=True)["state_dict"]
    main(arguments(kind, "fit", run, 2))
    history = json.loads((run / "history.json").read_text())
    assert [entry["iteration"] for entry in history] == [1, 2]
    assert all(entry["metrics"]["train/grad_norm"] > 0 for entry in history)
    second = torch.load(last, weights_only=True)["state_dict"]
    assert first.keys() == second.keys()
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    assert any("action_out_proj" in name for name in moved)
    assert any(".layers." in name for name in moved)
    assert ("noise_network" in str(moved)) == (kind == "pi05")

    main([*arguments(kind, "validate", run, 2), f"--ckpt_path={last}"])
    trained = json.loads(evaluation_path(run, "last").read_text())
    assert trained["tasks"]

    # What is exported stands in the published layout, and is what was trained.
    main(["export", str(last), str(tmp_path / "out")])
    before = load_file(GOLDENS / kind / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("action_out_proj" in name for name in changed)
    vision = [name for name in changed if "vision" in name]
    assert bool(vision) == (kind == "smolvla")
    main([*arguments(kind, "validate", run, 2), f"--ckpt_path={tmp_path / 'out'}"])
    assert json.loads(evaluation_path(run, "validate").read_text())["tasks"]
