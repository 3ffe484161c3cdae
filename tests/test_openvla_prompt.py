"""Prompts, with a tiny tokenizer of a checkpoint's form."""

import os
from pathlib import Path

import pytest
import torch

from lightning_ript.policies.openvla_oft.prompt import PAD_TOKEN, PromptTokenizer, prompt

ROOT = Path(__file__).parents[1]
GOLDENS = Path(os.environ.get("LIGHTNING_RIPT_GOLDENS", ROOT / "../shared/goldens"))
WORDS = "in what action should the robot take to out open close drawer ▁ : ? \n"


def write_tokenizer(folder, start=True, padding=False, space=29871):
    """Words of WORDS are tokens 10, 11, ...; the start token is 1."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {word: 10 + i for i, word in enumerate(WORDS.split(" "))} | {"▁": space}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(" ", "removed"),
            tokenizers.pre_tokenizers.Split("\n", "isolated"),
            tokenizers.pre_tokenizers.Punctuation(),
        ]
    )
    if start:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    if padding:
        tokenizer.enable_padding(length=50)
        tokenizer.enable_truncation(4)
    tokenizer.save(str(folder / "tokenizer.json"))
    return vocabulary


@pytest.mark.parity(
    area="OpenVLA-OFT",
    point="Prompt",
    reference="In: What action should the robot take to ...?",
)
def test_the_question():
    expected = "In: What action should the robot take to open the drawer?\nOut:"
    assert prompt("Open the Drawer") == expected


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("padding", [True, False])
def test_tokens(tmp_path, start, padding):
    """The same of every file: a start token, all words, the lone word start."""
    vocabulary = write_tokenizer(tmp_path, start, padding)
    question = "in : what action should the robot take to open the drawer ? \n out :"
    expected = [1, *(vocabulary[word] for word in question.split(" ")), 29871]
    assert PromptTokenizer(tmp_path).tokens("open the drawer") == expected


@pytest.mark.parity(
    area="OpenVLA-OFT",
    point="Prompt: the empty token at its end",
    reference="added unless it is there",
)
def test_the_space_is_not_doubled(tmp_path):
    vocabulary = write_tokenizer(tmp_path, space=29871)
    tokenizer = PromptTokenizer(tmp_path)
    tokenizer._tokenizer.post_processor = __import__("tokenizers").processors.TemplateProcessing(
        single="<s> $A ▁", special_tokens=[("<s>", 1), ("▁", 29871)]
    )
    assert tokenizer.tokens("open")[-2:] == [vocabulary[":"], 29871]


def test_a_batch_is_padded_at_the_end(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = PromptTokenizer(tmp_path)
    tokens, mask = tokenizer(["open", "close the drawer"])
    assert tokens.shape == mask.shape == (2, tokenizer.longest(["close the drawer"]))
    assert tokens.dtype == mask.dtype == torch.int64
    assert tokens[0, -2:].tolist() == [PAD_TOKEN] * 2
    assert mask.sum(1).tolist() == [16, 18]
    assert tokens[0][mask[0].bool()].tolist() == tokenizer.tokens("open")
    longer, mask = tokenizer(["open"], length=20)
    assert longer.shape == (1, 20)
    assert mask.sum() == 16
    with pytest.raises(ValueError, match="18 tokens, but room is for 16"):
        tokenizer(["close the drawer"], length=16)


def test_instructions_are_tokenized_once(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = PromptTokenizer(tmp_path)
    first = tokenizer.tokens("open")
    tokenizer._tokenizer = None
    assert tokenizer.tokens("open") is first


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json: copy it there"):
        PromptTokenizer(tmp_path)


def test_golden_form(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    file = GOLDENS / "openvla_oft/tensors.safetensors"
    if not file.is_file():
        pytest.skip("no golden tensors here")
    golden = safetensors.load_file(file)
    write_tokenizer(tmp_path)
    tokens, mask = PromptTokenizer(tmp_path)(["open the drawer"] * 3)
    for column in (0, -1):
        assert torch.equal(tokens[:, column], golden["in.input_ids"][:, column])
    assert mask.dtype == golden["in.attention_mask"].dtype
    assert golden["in.attention_mask"].all()
    assert mask.all()
