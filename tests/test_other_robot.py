"""QueST on a robot that is not LIBERO's, from demonstrations to RIPT, its inputs unnamed."""

import json

import pytest
import torch
import yaml
from other_robot import OtherSpec, write_demonstrations
from toy_runs import refusal

from lightning_ript.cli import main
from lightning_ript.policies.quest import QueSTConfig
from lightning_ript.storage.evaluation_result import EvaluationResult

SIZES = {
    "image_size": 16,
    "image_width": 4,
    "image_embed_dim": 8,
    "lowdim_embed_dim": 4,
    "embed_dim": 16,
    "prior_layers": 1,
    "prior_heads": 2,
    "autoencoder_dim": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "autoencoder_heads": 2,
    "block_size": 8,
}
INPUTS = {"cameras": ["front"], "lowdim": {"joints": 4}, "action_dim": 3}
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
CPU = ["--trainer.accelerator=cpu", "--trainer.devices=1"]


def policy(checkpoint=None):
    settings = {"sizes": SIZES, "checkpoint": checkpoint}
    return {
        "class_path": "lightning_ript.policies.quest.QueSTPolicy",
        "init_args": {name: value for name, value in settings.items() if value is not None},
    }


def run(folder, name, config, command="fit", *more):
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"run_dir": str(folder / name), "seed_everything": 0, **config}))
    main([command, f"--config={path}", *QUIET, *CPU, *more])
    return str(folder / name / "checkpoints/last.ckpt")


def stage(name, demonstrations, checkpoint=None):
    return {
        "model": {
            "class_path": f"lightning_ript.policies.quest.stages.{name}",
            "init_args": {"policy": policy(checkpoint)},
        },
        "data": {
            "class_path": "lightning_ript.demos.datamodule.DemonstrationDataModule",
            "init_args": {"files": [demonstrations], "batch_size": 8, "block_size": 8},
        },
        "trainer": {"max_epochs": 1},
    }


def ript(checkpoint=None, **environment):
    return {
        "model": {
            "class_path": "lightning_ript.module.RIPTLightningModule",
            "init_args": {"policy": policy(checkpoint), "passes": 1},
        },
        "data": {
            "class_path": "lightning_ript.datamodule.RolloutDataModule",
            "init_args": {
                "environment": {"class_path": "other_robot.OtherSpec", "init_args": environment},
                "groups_per_iteration": 2,
                "rollouts_per_context": 4,
                "num_workers": 0,
            },
        },
        "trainer": {
            "max_epochs": 1,
            "reload_dataloaders_every_n_epochs": 1,
            "callbacks": [
                f"lightning_ript.callbacks.{n}" for n in ("EvaluationReport", "RunReport")
            ],
        },
    }


def named_inputs(run_dir):
    (path,) = run_dir.glob("metrics/version_0/config.yaml")
    sizes = yaml.safe_load(path.read_text())["model"]["init_args"]["policy"]["init_args"]["sizes"]
    return {name: sizes[name] for name in INPUTS}


def test_from_demonstrations_to_ript(tmp_path):
    demonstrations = write_demonstrations(tmp_path / "wave_demo.hdf5")
    first = run(tmp_path, "autoencoder", stage("AutoencoderTraining", demonstrations))
    second = run(tmp_path, "sft", stage("SupervisedFineTuning", demonstrations, first))
    last = run(tmp_path, "ript", ript(second))
    for name in ("autoencoder", "sft", "ript"):
        assert named_inputs(tmp_path / name) == INPUTS
    before, after = (torch.load(c, weights_only=False)["state_dict"] for c in (second, last))
    assert "policy.model.image_encoders.front.block_1.conv1.weight" in after
    assert after["policy.model.lowdim_encoders.joints.projection.0.weight"].shape == (4, 4)
    assert any(not torch.equal(after[n], before[n]) for n in after if "policy_prior" in n)
    (entry,) = json.loads((tmp_path / "ript/history.json").read_text())
    assert entry["metrics"]["train/ratio"] == pytest.approx(1, abs=0.1)
    result = EvaluationResult.read(tmp_path / "ript/evaluation/epoch=000.json")
    assert result.caveats == ("This robot is made up.",)
    assert "h5py" in result.metadata["versions"]
    run(tmp_path, "ript", ript(second), "validate", f"--ckpt_path={last}")


def test_what_does_not_fit_is_refused_before_anything_starts(tmp_path, capsys):
    path = tmp_path / "ript.yaml"
    path.write_text(yaml.safe_dump({"run_dir": str(tmp_path / "run"), **ript(image_size=32)}))
    fit = ["fit", f"--config={path}", *QUIET, *CPU]
    said = refusal(capsys, *fit)
    assert "QueST takes {'front': (16, 16, 3)}, but the environment shows" in said
    small = "--data.environment.image_size=16"
    said = refusal(capsys, *fit, small, "--model.policy.sizes.action_dim=7")
    assert "QueST decides on actions of 7 numbers, but the environment takes (3,)" in said
    said = refusal(capsys, *fit, small, "--model.policy.sizes.cameras=[back]")
    assert "QueST takes {'back': (16, 16, 3)}" in said
    assert not (tmp_path / "run/checkpoints").exists()


def test_sizes_from_python():
    spec = OtherSpec()
    config = QueSTConfig.for_spaces(spec.observation_space, spec.action_space, image_size=16)
    assert (config.images, config.proprioception, config.actions) == (("front",), {"joints": 4}, 3)


def test_libero_keeps_the_published_inputs():
    from lightning_ript.envs.libero import LiberoSpec

    spec = LiberoSpec("libero_object")
    config = QueSTConfig.for_spaces(spec.observation_space, spec.action_space)
    published = QueSTConfig()
    assert config.images == published.images == ("agentview_rgb", "eye_in_hand_rgb")
    assert config.proprioception == published.proprioception
    assert list(config.proprioception) == ["joint_states", "ee_pos", "gripper_states"]
    assert config.actions == published.actions == 7
