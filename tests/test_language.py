"""CLIP's text features, on a tiny random CLIP in a folder."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub import constants
from test_quest_policy import TASK, TINY, observation
from toy_runs import SHORT

from lightning_ript.cli import main
from lightning_ript.envs.pool import EnvironmentPool
from lightning_ript.policies.quest import QueSTConfig, QueSTPolicy
from lightning_ript.policies.quest.language import CLIP, task_embedding
from lightning_ript.policies.quest.text_features import MAX_LENGTH, TextFeatures

TEXTS = ["put the bowl on the plate", "open the drawer", "put it down"]
DIM = 24
POSITIONS = 30


def write_tokenizer(folder):
    """Byte pairs of lower-case letters with two merged words, in CLIP's files; (size, end)."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    merges = [("t", "h"), ("th", "e</w>"), ("p", "u"), ("pu", "t</w>")]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    special = {"bos_token": tokens[-2]} | dict.fromkeys(
        ("eos_token", "unk_token", "pad_token"), tokens[-1]
    )
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(tokens)


@pytest.fixture
def clip(tmp_path, monkeypatch):
    """A folder as the published CLIP's: both halves in one file, and its old end-of-text id."""
    from transformers import CLIPConfig, CLIPModel

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "clip"
    folder.mkdir()
    half = {"num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": DIM}
    text = {
        "vocab_size": write_tokenizer(folder),
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": POSITIONS,
        "eos_token_id": 2,
        "bos_token_id": 0,
        **half,
    }
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "image_size": 8, "patch_size": 4, **half
    }  # fmt: skip
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=DIM)
    CLIPModel(config).save_pretrained(folder)
    return folder


def whole_models_features(folder, texts):
    """As LIBERO and QueST compute them."""
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(
        text=texts,
        add_special_tokens=True,
        max_length=MAX_LENGTH,
        padding="max_length",
        return_attention_mask=True,
        return_tensors="pt",
    )
    assert tokens["input_ids"].shape == (len(texts), 25)
    features = AutoModel.from_pretrained(folder).get_text_features(**tokens)
    if not isinstance(features, torch.Tensor):  # from transformers 5 on
        features = features.pooler_output
    return features.detach()


def test_features_are_the_whole_models(clip):
    expected = whole_models_features(clip, TEXTS)
    features = TextFeatures(str(clip), DIM)(TEXTS)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, atol=1e-6, rtol=0)
    differences = (features[:, None] - features).norm(dim=-1)
    assert (differences[~torch.eye(3, dtype=bool)] > 1e-2).all()
    assert abs(features[0].norm() - 1) > 1e-3  # not normalized


def test_known_features_need_no_model(clip):
    first = TextFeatures(str(clip), DIM)(TEXTS)
    shutil.rmtree(clip)
    assert torch.equal(
        TextFeatures(str(clip), DIM)([TEXTS[1], TEXTS[1], TEXTS[0]]), first[[1, 1, 0]]
    )
    with pytest.raises(FileNotFoundError, match=r"no folder .*clip with a text encoder"):
        TextFeatures(str(clip), DIM)(["a text of another run"])
    code = (
        "import sys; from lightning_ript.policies.quest.text_features import TextFeatures;"
        f"assert TextFeatures(sys.argv[1], {DIM})({TEXTS!r}).shape == (3, {DIM});"
        "assert not {'transformers', 'huggingface_hub'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(clip)], check=True)


def test_a_feature_does_not_depend_on_its_company(clip, tmp_path, monkeypatch):
    together = TextFeatures(str(clip), DIM)(TEXTS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    alone = TextFeatures(str(clip), DIM)(TEXTS[2:])
    assert torch.equal(alone, together[2:])


def test_half_precision_weights_are_computed_in_full(clip):
    from transformers import CLIPModel

    expected = whole_models_features(clip, TEXTS)
    CLIPModel.from_pretrained(clip).half().save_pretrained(clip)
    features = TextFeatures(str(clip), DIM)(TEXTS)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, atol=5e-3, rtol=0)


def test_a_policy_reads_them(clip):
    sizes = QueSTConfig(**{**vars(TINY), "language_dim": DIM})
    policy = QueSTPolicy(sizes, language=str(clip))
    policy.prepare([TASK])
    shutil.rmtree(clip)
    context = policy.encode_observations([observation(0)], [TASK])
    with torch.no_grad():
        expected = policy.model.task_encoder(policy.embed([TASK.language]))
    assert torch.equal(context[:, 0], expected)


def test_a_width_that_does_not_fit_is_refused(clip):
    policy = QueSTPolicy(TINY, language=str(clip))
    with pytest.raises(ValueError, match=r"makes vectors of 24 numbers, but the model takes 512"):
        policy.prepare([TASK])


@pytest.mark.parity(
    area="QueST",
    point="Which CLIP",
    reference="openai/clip-vit-base-patch32",
)
def test_clip_is_the_published_one():
    assert task_embedding("clip", 512).encoder == CLIP == "openai/clip-vit-base-patch32"
    assert task_embedding("laion/other.clip", 768).encoder == "laion/other.clip"


def test_other_words_are_refused():
    for language in ("clipp", "a/b/c", ""):
        with pytest.raises(ValueError, match="must be hashed, clip, a CLIP's id"):
            QueSTPolicy(TINY, language=language)


def test_folders_without_a_clip_are_refused(clip, tmp_path):
    from transformers import BertConfig, BertModel

    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty cannot be loaded as a CLIP with its tokenizer"):
        TextFeatures(str(tmp_path / "empty"), DIM)(TEXTS)
    weights = clip / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"clip cannot be loaded as a CLIP with its tokenizer"):
        TextFeatures(str(clip), DIM)(TEXTS)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    bert = BertConfig(vocab_size=60, num_hidden_layers=1, **small)
    BertModel(bert).save_pretrained(clip)
    with pytest.raises(
        ValueError, match=r"clip (is no CLIP: it has no|cannot be loaded as a CLIP)"
    ):
        TextFeatures(str(clip), DIM)(TEXTS)


def test_a_text_too_long_is_refused(clip):
    with pytest.raises(ValueError, match=rf"has 42 tokens, but .*clip reads at most {POSITIONS}"):
        TextFeatures(str(clip), DIM)(["z" * 40])


def test_no_network_is_said_before_simulators_start(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(EnvironmentPool, "__init__", lambda *_: pytest.fail("too late"))
    policy = [
        "--model.init_args.policy=lightning_ript.policies.quest.QueSTPolicy",
        "--model.init_args.policy.init_args.language=clip",
    ]
    with pytest.raises(SystemExit) as caught:
        main(["fit", *SHORT, f"--run_dir={tmp_path}", *policy])
    assert caught.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"the text encoder {CLIP} has not been downloaded before and HF_HUB_OFFLINE is" in line
