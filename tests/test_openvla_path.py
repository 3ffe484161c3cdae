"""The whole path of OpenVLA-OFT on the simulator, with a tiny random model."""

import json

import pytest
import torch
from staged_probe import StagedSpec

from lightning_ript.cli import main
from lightning_ript.envs.libero.assets import cache_folder
from lightning_ript.envs.libero.standins import build_standins
from lightning_ript.storage.run_directory import adapter_path, evaluation_path, scale_head_path

load_file = pytest.importorskip("safetensors.torch").load_file
tiny = pytest.importorskip("tiny_openvla")  # needs timm
STAGED = f"{StagedSpec.__module__}.{StagedSpec.__name__}"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Checkpoints of both kinds, and demonstrations."""
    base = tmp_path_factory.mktemp("openvla")
    assets = build_standins(cache_folder())
    tiny.write_tiny_openvla(base / "checkpoint", unnorm_key="libero_object_no_noops")
    tiny.write_tiny_openvla_tokens(base / "tokens", unnorm_key="libero_object_no_noops")
    drawn = [f"--assets={assets}", "--image_size=64", "--render=light"]
    main(["collect-demos", "--tasks=[0]", "--demos=2", f"--out={base}/demonstrations", *drawn])
    return base, assets


def continuous(made, *args):
    base, _ = made
    return [
        *arguments(made, *args),
        "--config=configs/openvla_oft/scale_head.yaml",
        f"--trainer.callbacks.data.files=[{base}/demonstrations]",
        "--trainer.callbacks.data.batch_size=16",
        "--trainer.callbacks.epochs=3",
        "--trainer.callbacks.lr=0.01",
        f"--model.policy.checkpoint={base}/checkpoint",
    ]


def tokens(made, *args):
    base, _ = made
    return [
        *arguments(made, *args),
        "--config=configs/openvla_oft/tokens.yaml",
        f"--model.policy.checkpoint={base}/tokens",
    ]


def arguments(made, run_dir, command, iterations):
    """Without what only one kind of action needs."""
    _, assets = made
    return [
        command,
        "--config=configs/openvla_oft/ript.yaml",
        f"--run_dir={run_dir}",
        f"--trainer.max_epochs={iterations}",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--model.policy.statistics=libero_object",
        "--model.policy.lora={r: 2, alpha: 4}",
        "--model.optimizer.lr=0.01",
        f"--data.environment={STAGED}",
        "--data.environment.suite=libero_object",
        "--data.environment.task_subset=[0]",
        f"--data.environment.assets={assets}",
        "--data.environment.image_size=64",
        "--data.environment.render=light",
        "--data.environment.max_steps=8",
        "--data.rollouts_per_context=4",
        "--data.groups_per_iteration=2",
        "--data.num_workers=2",
        "--data.eval_states_per_task=2",
    ]


@pytest.mark.libero
def test_scale_head_ript_resume_and_validation(made, tmp_path):
    main(continuous(made, tmp_path, "fit", 1))
    assert scale_head_path(tmp_path).is_file()
    trained = torch.load(scale_head_path(tmp_path), weights_only=True)
    first = load_file(adapter_path(tmp_path, "iteration_001") / "adapter_model.safetensors")

    last = tmp_path / "checkpoints/last.ckpt"
    saved = torch.load(last, weights_only=False)
    names = [n for n in saved["state_dict"] if n.startswith("policy.model.base.")]
    assert names
    assert all(".lora_" in name for name in names)
    head = saved["state_dict"]["policy.model.scale_head.log_b_head.weight"]
    torch.testing.assert_close(head, trained["log_b_head"]["weight"])

    second = goes_on(continuous, made, tmp_path)
    assert any("q_proj" in name for name in changed(first, second))
    assert (adapter_path(tmp_path, "best") / "openvla_headers.pt").is_file()


@pytest.mark.slow
@pytest.mark.libero
def test_tokens_ript_resume_and_validation(made, tmp_path):
    main(tokens(made, tmp_path, "fit", 1))
    assert not scale_head_path(tmp_path).exists()
    first = load_file(adapter_path(tmp_path, "iteration_001") / "adapter_model.safetensors")
    second = goes_on(tokens, made, tmp_path)
    assert any("lm_head" in name for name in changed(first, second))


def goes_on(kind, made, run_dir):
    """A second iteration by the same command, longer, and an evaluation; returns the adapter."""
    main(kind(made, run_dir, "fit", 2))
    history = json.loads((run_dir / "history.json").read_text())
    assert [entry["iteration"] for entry in history] == [1, 2]
    assert all(entry["metrics"]["train/grad_norm"] > 0 for entry in history)
    last = run_dir / "checkpoints/last.ckpt"
    main([*kind(made, run_dir, "validate", 2), f"--ckpt_path={last}"])
    assert json.loads(evaluation_path(run_dir, "last").read_text())["tasks"]
    return load_file(adapter_path(run_dir, "iteration_002") / "adapter_model.safetensors")


def changed(first, second):
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]
