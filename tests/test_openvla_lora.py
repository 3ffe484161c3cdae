"""Adapters of OpenVLA-OFT: fresh, loaded, saved as published, merged."""

import json
import shutil

import pytest
import torch

from lightning_ript.policies import safetensor_files as files
from lightning_ript.policies.openvla_oft import OpenVLAOFTPolicy, lora
from lightning_ript.policies.openvla_oft.checkpoint import load_openvla
from lightning_ript.policies.openvla_oft.merge import merge_lora

tiny = pytest.importorskip("tiny_openvla")
peft = pytest.importorskip("peft")
safetensors = pytest.importorskip("safetensors.torch")
SIZES = lora.LoraSizes(r=2, alpha=3)


def disturb(model):
    """Gives adapter and heads weights that change something."""
    generator = torch.Generator().manual_seed(1)
    for module in (model.action_head, model.scale_head):
        for parameter in module.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    for parameter in lora.lora_parameters(model).values():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.write_tiny_openvla(tmp_path_factory.mktemp("base"), dtype=torch.float32)


@pytest.fixture
def load(base):
    return lambda folder=base: load_openvla(
        folder, folder / "scale_header.pth", dtype=torch.float32
    )


@pytest.fixture(scope="module")
def adapted(base):
    model = load_openvla(base, base / "scale_header.pth", dtype=torch.float32)
    lora.add_lora(model, SIZES)
    disturb(model)
    return model


@pytest.fixture(scope="module")
def adapter(adapted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    lora.save_lora(adapted, folder, base="someone/openvla")
    return folder


@torch.no_grad()
def same(model, other, atol=1e-5, forwards=("prefix_cache", "single_pass")):
    inputs = tiny.tiny_inputs((5, 8))
    for forward in forwards:
        for ours, theirs in zip(model(*inputs, forward), other(*inputs, forward), strict=True):
            torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


def test_a_fresh_adapter_changes_nothing(load):
    model = load()
    model.base.to(torch.bfloat16)
    lora.add_lora(model)
    weights = lora.lora_parameters(model)
    assert {p.dtype for p in weights.values()} == {torch.float32}
    same(model, load().to(torch.bfloat16), atol=0.1)
    wanting = {name for name, p in model.base.named_parameters() if p.requires_grad}
    assert len(wanting) == len(weights)
    assert all("lora_" in name for name in wanting)
    for place in (
        "language_model.lm_head",
        "language_model.model.layers.1.mlp.down_proj",
        "projector.fc3",
        "vision_backbone.featurizer.patch_embed.proj",
        "vision_backbone.fused_featurizer.attn_pool.kv",
    ):
        assert f"base_model.model.{place}.lora_A.weight" in weights
    with pytest.raises(ValueError, match="an adapter already"):
        lora.add_lora(model)


def test_gradients_reach_what_is_not_unused(load):
    model = load()
    lora.add_lora(model, SIZES)
    disturb(model)
    for forward in ("prefix_cache", "single_pass"):
        model.zero_grad()
        model(*tiny.tiny_inputs(), forward).mean.sum().backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not name.startswith("scale_head"):
                assert (parameter.grad is None) == name.startswith(model.unused(forward)), name


def test_saving_and_loading(load, adapted, adapter, tmp_path):
    model = load()
    lora.load_lora(model, adapter)
    same(model, adapted, atol=0)
    with pytest.raises(AssertionError):
        same(model, load())
    lora.save_lora(model, tmp_path / "again", write=False)
    assert not (tmp_path / "again").exists()
    lora.save_lora(model, tmp_path / "again")
    for file in (lora.WEIGHTS, lora.CONFIG):
        before, after = ((place / file).read_bytes() for place in (adapter, tmp_path / "again"))
        assert before.replace(b"someone/openvla", b"") == after
    # Into an adapter that is there already, of another alpha.
    other = load()
    lora.add_lora(other, lora.LoraSizes(r=2, alpha=8))
    lora.load_lora(other, adapter)
    same(other, adapted, atol=0)


def test_peft_reads_what_is_saved(load, adapted, adapter):
    model = load()
    model.base = peft.PeftModel.from_pretrained(model.base, adapter)
    headers = torch.load(adapter / "openvla_headers.pt", weights_only=True)
    model.action_head.load_state_dict(headers["action_header"])
    model.scale_head.load_state_dict(headers["scale_header"])
    same(model, adapted)


def test_heads_and_lm_head_are_optional(load, adapted, adapter, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    (folder / "openvla_headers.pt").unlink()
    weights = safetensors.load_file(folder / lora.WEIGHTS)
    weights["base_model.model.language_model.lm_head.base_layer.weight"] = torch.zeros(32064, 32)
    safetensors.save_file(weights, folder / lora.WEIGHTS)
    model = load()
    lora.load_lora(model, folder)
    own = lora.lora_parameters(model)
    assert all(torch.equal(own[n], p) for n, p in lora.lora_parameters(adapted).items())
    assert torch.equal(model.action_head.model.fc1.weight, load().action_head.model.fc1.weight)
    assert model.base.language_model.lm_head.base_layer.weight.any()


@pytest.mark.parametrize(("dtype", "atol"), [(None, 1e-5), (torch.bfloat16, 0.15)])
def test_merging(base, load, adapted, adapter, tmp_path, dtype, atol):
    folder = tmp_path / "merged"
    merge_lora(base, adapter, folder, dtype)
    same(load(folder), adapted, atol=atol)
    expected = {path.name for path in base.iterdir()} | {lora.MERGED}
    assert {path.name for path in folder.iterdir()} == expected
    before, after = (files.shapes(files.shards(place)) for place in (base, folder))
    assert before == after
    index, written = (
        json.loads((place / files.INDEX).read_text())["weight_map"] for place in (base, folder)
    )
    assert index == written
    with pytest.raises(ValueError, match="is not empty"):
        merge_lora(base, adapter, folder)


def test_merging_a_single_file(load, adapted, adapter, tmp_path):
    single = tiny.write_tiny_openvla(tmp_path / "single", dtype=torch.float32, shards=1)
    (single / files.INDEX).unlink()
    (single / "model-00001-of-00001.safetensors").rename(single / files.SINGLE)
    merge_lora(single, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged" / files.INDEX).exists()
    same(load(tmp_path / "merged"), adapted)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"use_dora": True}, "asks for use_dora True, which is not supported"),
        ({"bias": "all"}, "asks for bias 'all', which"),
        ({"peft_type": "LOHA"}, "asks for peft_type 'LOHA'"),
        ({"init_lora_weights": "pissa_niter_16"}, "asks for init_lora_weights 'pissa_niter_16'"),
        ({"use_qalora": True}, "asks for use_qalora True"),
        ({"lora_bias": True}, "asks for lora_bias True"),
        ({"of_a_later_peft": {"a": 1}}, "asks for of_a_later_peft"),
        ({"target_modules": ".*proj"}, "asks for target_modules as a pattern"),
        ({"r": 3}, r"lora_A.weight' has shape \(2, "),
        ({"target_modules": ["q_proj"]}, "is unknown to the model"),
        ({"lora_alpha": None, "target_modules": None}, "is not the config of a LoRA"),
    ],
)
def test_refuses_other_adapters(load, adapter, tmp_path, change, sentence):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    config = json.loads((folder / lora.CONFIG).read_text())
    (folder / lora.CONFIG).write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=sentence):
        lora.load_lora(load(), folder)


def test_merging_refuses_what_does_not_fit(base, adapter, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    weights = safetensors.load_file(folder / lora.WEIGHTS)
    name = "base_model.model.projector.fc1.lora_B.weight"
    weights[name] = weights[name][:8]
    weights["base_model.model.projector.fc9.lora_A.weight"] = torch.zeros(2, 2)
    safetensors.save_file(weights, folder / lora.WEIGHTS)
    with pytest.raises(ValueError, match=r"'.*fc9.* is unknown.*'.*fc1.lora_B.*\(8, 2\) there"):
        merge_lora(base, folder, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_names_what_is_missing(load, adapter, tmp_path):
    with pytest.raises(ValueError, match="no adapter that could be saved"):
        lora.save_lora(load(), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"There is no .*adapter_config.json"):
        lora.load_lora(load(), tmp_path)
    shutil.copy(adapter / lora.CONFIG, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"There is no .*adapter_model.safetensors"):
        lora.load_lora(load(), tmp_path)


@pytest.mark.parity(
    area="OpenVLA-OFT",
    point="An adapter that the weights hold already",
    reference="added again without a word",
    ours="refused",
    same=False,
)
def test_an_adapter_is_not_merged_twice(base, adapter, tmp_path):
    merge_lora(base, adapter, tmp_path / "merged")
    with pytest.raises(ValueError, match=r"has been merged into the weights of .*merged already"):
        merge_lora(tmp_path / "merged", adapter, tmp_path / "twice")
    assert not (tmp_path / "twice").exists()
    # OpenVLA-OFT's training leaves the adapter that it has merged beside the weights.
    trained = shutil.copytree(base, tmp_path / "trained")
    shutil.copytree(adapter, trained / "lora_adapter")
    for same in (adapter, trained / "lora_adapter"):
        with pytest.raises(ValueError, match=r"has been merged into the weights of .*trained"):
            merge_lora(trained, same, tmp_path / "twice")
    with pytest.raises(ValueError, match="would be added a second time"):
        OpenVLAOFTPolicy(str(trained), tiny.UNNORM_KEY, adapter=str(adapter), precision="float32")


def test_what_merging_has_written_down_is_kept(base, adapter, tmp_path):
    other = shutil.copytree(adapter, tmp_path / "other")
    weights = safetensors.load_file(other / lora.WEIGHTS)
    safetensors.save_file({n: 2 * w for n, w in weights.items()}, other / lora.WEIGHTS)
    merge_lora(base, adapter, tmp_path / "one")
    merge_lora(tmp_path / "one", other, tmp_path / "two")
    written = lora.merged_adapters(tmp_path / "two")
    assert [entry["adapter"] for entry in written] == [str(adapter), str(other)]
    for known in (adapter, other):
        with pytest.raises(ValueError, match="already"):
            merge_lora(tmp_path / "two", known, tmp_path / "three")
