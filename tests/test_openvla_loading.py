"""Loading published OpenVLA-OFT directories: what is read, what is refused, and how much memory."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch

from lightning_ript.policies.openvla_oft.checkpoint import load_openvla, load_scale_head
from lightning_ript.policies.openvla_oft.config import OpenVLAConfig
from lightning_ript.storage.hub import local_folder

tiny = pytest.importorskip("tiny_openvla")
from_file = pytest.importorskip("safetensors.torch").load_file
to_file = pytest.importorskip("safetensors.torch").save_file


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tiny.write_tiny_openvla(tmp_path_factory.mktemp("openvla"), seed=3)


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "openvla"))


def edit(path, change):
    """Changes the tensors of a safetensors file."""
    weights = from_file(path)
    change(weights)
    to_file(weights, path)


def last_shard(folder):
    return folder / "model-00002-of-00002.safetensors"


def test_loads_every_weight(folder):
    model = load_openvla(folder, folder / "scale_header.pth", dtype=torch.float32)
    written = tiny.tiny_model(seed=3)
    loaded = model.state_dict()
    for name, value in written.state_dict().items():
        expected = value.half().float() if name.startswith("base.") else value
        assert torch.equal(loaded[name], expected), name
    assert not model.training
    wanting = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith("base.") for name in wanting)
    assert all(name in wanting for name in loaded if not name.startswith("base."))
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, written.get_buffer(name), msg=name)
    shutil.rmtree(folder)  # nothing is left that reads it
    assert model(*tiny.tiny_inputs()).mean.isfinite().all()


def test_a_projector_is_not_left_out_in_silence(folder):
    with pytest.raises(ValueError, match="has a projector of proprioception: set proprio"):
        load_openvla(folder, proprio=False)


def test_single_file_and_dtypes(folder):
    weights = {}
    for shard in sorted(folder.glob("*.safetensors")):
        weights.update(from_file(shard))
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink()
    (folder / "proprio_projector--150000_checkpoint.pt").unlink()
    weights["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    to_file(weights, folder / "model.safetensors")
    model = load_openvla(folder, proprio=False)
    dtypes = {name.split(".")[0]: value.dtype for name, value in model.state_dict().items()}
    assert dtypes.pop("base") == torch.bfloat16
    assert dtypes == {"action_head": torch.float32, "scale_head": torch.float32}
    load_scale_head(model.scale_head, folder / "scale_header.pth")
    assert torch.equal(
        model.scale_head.log_b_head.weight, tiny.tiny_model(seed=3).scale_head.log_b_head.weight
    )


def change_shape(weights):
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    weights[name] = weights[name][:16]


def rename(weights):
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    weights[name + "s"] = weights.pop(name)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (change_shape, r"q_proj.weight' has shape \(16, 32\) there and \(32, 32\) in the model$"),
        (rename, r"q_proj.weight' is missing from it; '.*q_proj.weights' is unknown to the model$"),
    ],
)
def test_names_what_does_not_fit(folder, monkeypatch, change, sentence):
    edit(last_shard(folder), change)
    monkeypatch.setattr(
        "lightning_ript.policies.openvla_oft.checkpoint._stream",
        lambda *_: pytest.fail("weights were read before names and shapes were compared"),
    )
    with pytest.raises(ValueError, match=sentence):
        load_openvla(folder)


def test_names_what_does_not_fit_in_a_head(folder):
    path = folder / "action_head--150000_checkpoint.pt"
    weights = torch.load(path)
    weights["module.model.fc2.bias"] = torch.zeros(6)
    torch.save(weights, path)
    with pytest.raises(ValueError, match=r"action_head.*'model.fc2.bias' has shape \(6,\) there"):
        load_openvla(folder)


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("config.json", "There is no .*config.json: name a published OpenVLA-OFT directory"),
        ("model-00002-of-00002.safetensors", "lacks model-00002-of-00002.safetensors, which its"),
        ("model.safetensors.index.json", "holds neither model.safetensors.index.json nor"),
        ("action_head--150000_checkpoint.pt", "holds no action head"),
        ("proprio_projector--150000_checkpoint.pt", "holds no proprio projector"),
        ("scale_header.pth", "There is no .*scale_header.pth"),
        (".", "There is no directory"),
    ],
)
def test_names_what_is_missing(folder, missing, sentence):
    gone = folder / missing
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(FileNotFoundError, match=sentence):
        load_openvla(folder, folder / "scale_header.pth")


def test_refuses_files_of_another_kind(folder):
    (folder / "action_head--2_checkpoint.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"more than one action head: keep one of"):
        load_openvla(folder)
    (folder / "action_head--2_checkpoint.pt").unlink()
    with pytest.raises(ValueError, match=r"is no scale head: it has no scale_trunk and no log_b"):
        load_openvla(folder, folder / "action_head--150000_checkpoint.pt")
    (folder / "scale_header.pth").write_text("<html>")
    with pytest.raises(ValueError, match=r"scale_header.pth is not a file that torch.save wrote"):
        load_openvla(folder, folder / "scale_header.pth")
    last_shard(folder).write_bytes(last_shard(folder).read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"00002-of-00002.safetensors cannot be read"):
        load_openvla(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"timm_model_ids": ["vit_unheard_of", "vit_nano_patch56_siglip"]}, "no image encoder"),
        ({"timm_model_ids": ["vit_nano_patch56_siglip"]}, "must name two encoders"),
        ({"text_config": {"model_type": "phi"}}, "model_type must be 'llama'"),
        ({"use_fused_vision_backbone": False}, "must not be false"),
    ],
)
def test_refuses_other_models(folder, change, sentence):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=sentence):
        load_openvla(folder)


def test_config_defaults_are_the_published_models():
    config = OpenVLAConfig.from_dict({"text_config": {"vocab_size": 32064}})
    assert config.text.llama().hidden_size == 4096
    assert config.timm_model_ids[1] == "vit_so400m_patch14_siglip_224"
    assert config.image_size == 224


@pytest.mark.parity(
    area="OpenVLA-OFT",
    point="Image encoders with FiLM",
    reference="loaded if use_film is set",
    ours="refused",
    same=False,
)
def test_image_encoders_with_film_are_refused(original, tmp_path):
    film = shutil.copytree(original, tmp_path / "film")
    (film / "vision_backbone--150000_checkpoint.pt").touch()
    with pytest.raises(ValueError, match=r"vision_backbone--150000_checkpoint.pt holds .* FiLM"):
        load_openvla(film)


def test_folders_on_the_hub(monkeypatch):
    asked = []

    def download(repo, revision, allow_patterns, ignore_patterns):
        asked.append((repo, revision, allow_patterns, ignore_patterns))
        return "/there"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert str(local_folder("hf://some-one/vla", ["*.pt"])) == "/there"
    assert str(local_folder("hf://some-one/vla@v2/lora/goal", ["*.pt"])) == "/there/lora/goal"
    assert asked == [
        ("some-one/vla", None, ["*.pt"], ["*/*"]),
        ("some-one/vla", "v2", ["lora/goal/*.pt"], ["lora/goal/*/*"]),
    ]
    with pytest.raises(ValueError, match="no address of a folder on the hub"):
        local_folder("hf://vla", ["*.pt"])


MEMORY = """
import sys, threading, time
import tiny_openvla
from lightning_ript.policies.openvla_oft import checkpoint

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

def peak(device):
    before = highest = resident()
    done = False

    def watch():
        nonlocal highest
        while not done:
            highest = max(highest, resident())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    model = checkpoint.load_openvla(sys.argv[1], device=device)
    done = True
    watcher.join()
    return highest - before

checkpoint.load_openvla(sys.argv[2])  # whatever is imported on the way counts for neither
place = checkpoint.assign

def read_and_place(module, name, *, value, **to):
    value.amax()
    place(module, name, value=value, **to)

# "meta" stands for a GPU: what arrives there takes no memory here, but it has been read.
checkpoint.assign = read_and_place
print(peak("meta"))
checkpoint.assign = place
print(peak("cpu"))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measures as Linux tells it")
def test_memory_beside_the_model(original, tmp_path, monkeypatch):
    """5 files of 60 MB: no more than one of them is in memory at once."""
    text = {**tiny.CONFIG["text_config"], "hidden_size": 512, "intermediate_size": 1024}
    text.update(num_hidden_layers=57, vocab_size=640, pad_token_id=0)
    monkeypatch.setitem(tiny.CONFIG, "text_config", text)
    large = tiny.write_tiny_openvla(tmp_path / "large", shards=5, dtype=torch.bfloat16)
    sizes = [path.stat().st_size / 2**20 for path in large.glob("*.safetensors")]
    assert len(sizes) == 5
    assert 55 < min(sizes) <= max(sizes) < 65
    heads = sum(path.stat().st_size / 2**20 for path in large.glob("*.pt*"))
    command = [sys.executable, "-c", MEMORY, large, original]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    beside, on_cpu = map(float, result.stdout.split())
    assert max(sizes) / 2 < beside < 1.3 * max(sizes) + heads
    assert on_cpu < sum(sizes) + 1.3 * max(sizes) + 2 * heads
