"""A base in 8 or 4 bits, on a CPU, where bitsandbytes runs too, if slowly."""

import json

import pytest
import torch

from lightning_ript.cli import main
from lightning_ript.policies.openvla_oft import quantization
from lightning_ript.policies.openvla_oft.checkpoint import load_openvla
from lightning_ript.storage.run_directory import adapter_path

tiny = pytest.importorskip("tiny_openvla")  # needs timm
load_file = pytest.importorskip("safetensors.torch").load_file
pytest.importorskip("bitsandbytes")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Wide enough for bitsandbytes' blocks."""
    text = {**tiny.CONFIG["text_config"], "hidden_size": 128, "intermediate_size": 256}
    monkeypatch.setitem(tiny.CONFIG, "text_config", text)
    return tiny.write_tiny_openvla(tmp_path / "openvla")


def test_quantization_says_what_it_lacks(folder, monkeypatch):
    with pytest.raises(ValueError, match="quantization must be one of"):
        load_openvla(folder, quantization="2bit")
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[quantization\]'"):
        load_openvla(folder, quantization="4bit")


@pytest.mark.parametrize(
    ("kind", "stored", "error"), [("8bit", torch.int8, 0.02), ("4bit", torch.uint8, 0.12)]
)
def test_weights_are_rounded(folder, kind, stored, error):
    models = [
        load_openvla(folder, folder / "scale_header.pth", dtype=torch.bfloat16, quantization=how)
        for how in (None, kind)
    ]
    exact, rounded = (model.base.language_model for model in models)
    assert rounded.lm_head.weight.dtype == torch.bfloat16
    one = torch.eye(256, dtype=torch.bfloat16, requires_grad=True)
    for plain, layer in zip(exact.model.layers, rounded.model.layers, strict=True):
        assert layer.mlp.down_proj.weight.dtype == stored
        with torch.no_grad():
            weight, ours = (each.mlp.down_proj(one.detach()).float() for each in (plain, layer))
        assert 0 < (weight - ours).norm() < error * weight.norm()
        # Having acted, it still lets gradients through.
        (gradient,) = torch.autograd.grad(layer.mlp.down_proj(one).sum(), one)
        expected = ours.sum(1).expand(256, 256)
        assert (gradient.float() - expected).norm() < 0.02 * expected.norm()
    with torch.no_grad():
        assert models[1](*tiny.tiny_inputs()).mean.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "forward"),
    [
        ("8bit", "prefix_cache"),
        ("4bit", "single_pass"),
        pytest.param("8bit", "single_pass", marks=pytest.mark.slow),
        pytest.param("4bit", "prefix_cache", marks=pytest.mark.slow),
    ],
)
def test_ript_and_resume(folder, tmp_path, kind, forward):
    arguments = [
        "fit",
        "--config=configs/openvla_oft/ript.yaml",
        "--seed_everything=0",
        f"--run_dir={tmp_path}",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.limit_val_batches=0",
        f"--model.policy.checkpoint={folder}",
        f"--model.policy.scale_head={folder}/scale_header.pth",
        f"--model.policy.statistics={tiny.UNNORM_KEY}",
        "--model.policy.lora={r: 2, alpha: 4}",
        f"--model.policy.quantization={kind}",
        f"--model.policy.forward={forward}",
        "--model.optimizer.lr=0.002",
        "--model.kl_coefficient=0.1",  # to a quantized copy
        "--data.environment=openvla_probe.ReachSpec",
        "--data.rollouts_per_context=4",
        "--data.groups_per_iteration=2",
        "--data.num_workers=0",
    ]
    main([*arguments, "--trainer.max_epochs=1"])
    main([*arguments, "--trainer.max_epochs=2"])
    history = json.loads((tmp_path / "history.json").read_text())
    assert [entry["iteration"] for entry in history] == [1, 2]
    assert all(entry["metrics"]["train/grad_norm"] > 0 for entry in history)
    first, second = (
        load_file(adapter_path(tmp_path, f"iteration_00{i}") / "adapter_model.safetensors")
        for i in (1, 2)
    )
    layers = [name for name in first if "mlp.down_proj" in name]
    assert layers
    assert any(not torch.equal(first[name], second[name]) for name in layers)
