"""hf:// addresses: what they mean, and what is said when a file cannot be had. No network."""

from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors
from test_quest_policy import TINY
from toy_runs import SHORT

from lightning_ript.cli import main
from lightning_ript.policies.quest import QueST, QueSTPolicy, save_official
from lightning_ript.storage.hub import local_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RESPONSE = SimpleNamespace(headers={}, request=None)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub client's cache with one file of a repository in it, and no network."""
    repo = tmp_path / "hub" / "models--someone--quest"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(COMMIT)
    folder = repo / "snapshots" / COMMIT / "goal"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    save_official(QueST(TINY), folder / "quest.pth", "hashed")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def test_paths_stay_paths(tmp_path):
    assert local_file(tmp_path / "gone.pth") == tmp_path / "gone.pth"
    assert str(local_file("runs/hf/last.ckpt")) == "runs/hf/last.ckpt"


def test_an_address_is_taken_apart(monkeypatch):
    asked = []

    def download(repo, path, revision):
        asked.append((repo, path, revision))
        return "/there"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    local_file("hf://some-one/quest.v1/quest.pth")
    local_file("hf://some-one/quest.v1@v2.0/goal/seed 0/quest.pth")
    assert asked == [
        ("some-one/quest.v1", "quest.pth", None),
        ("some-one/quest.v1", "goal/seed 0/quest.pth", "v2.0"),
    ]


@pytest.mark.parametrize(
    "address",
    [
        "hf://",
        "hf://quest.pth",
        "hf://someone/quest",
        "hf://someone/quest/",
        "hf://someone/quest//quest.pth",
        "hf://someone/quest@/quest.pth",
        "hf:/someone/quest/quest.pth",
    ],
)
def test_malformed_addresses(address):
    with pytest.raises(ValueError, match=r"is no address of a file on the hub: write hf://owner"):
        local_file(address)


def test_a_file_downloaded_before_needs_no_network(cache):
    for revision in ("", "@main", f"@{COMMIT}"):
        place = f"hf://someone/quest{revision}/goal/quest.pth"
        assert local_file(place) == cache / "quest.pth"
    expected = torch.load(cache / "quest.pth")["model"]
    loaded = QueSTPolicy(TINY, checkpoint=place).model.state_dict()
    assert all(torch.equal(loaded[n.removeprefix("module.")], v) for n, v in expected.items())


def test_validate_finds_it(cache, monkeypatch, tmp_path):
    """In the toy: the policy takes what it shows."""
    policy = "--model.init_args.policy=lightning_ript.policies.quest.QueSTPolicy"
    sizes = [
        f"--model.init_args.policy.init_args.sizes.{name}={value}"
        for name, value in vars(TINY).items()
        if not isinstance(value, tuple) and value is not None
    ]
    loaded = []
    adapter = "lightning_ript.policies.quest.adapter.load_official"
    monkeypatch.setattr(adapter, lambda *a: loaded.append(a[1]))
    place = "hf://someone/quest/goal/quest.pth"
    short = [word for word in SHORT if "limit_val" not in word]
    main(["validate", *short, policy, *sizes, f"--ckpt_path={place}", f"--run_dir={tmp_path}"])
    assert loaded == [str(cache / "quest.pth")]


def test_without_network_it_says_so(cache):
    with pytest.raises(
        FileNotFoundError,
        match=r"^hf://someone/quest/other.pth has not been downloaded before and HF_HUB_OFFLINE is "
        r"set: run this once with access to huggingface.co, or download it elsewhere",
    ):
        QueSTPolicy(TINY, checkpoint="hf://someone/quest/other.pth")


def test_the_command_line_says_it_in_a_sentence(cache, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["validate", *SHORT, "--ckpt_path=hf://someone/quest/other.pth"])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "other.pth has not been downloaded before and HF_HUB_OFFLINE is set" in line


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (errors.LocalEntryNotFoundError("x"), "before and the hub cannot be reached: run this"),
        (errors.RepositoryNotFoundError("x", response=RESPONSE), "no such repository"),
        (errors.GatedRepoError("x", response=RESPONSE), "log in with `hf auth login`"),
        (errors.HFValidationError("x"), "no such repository"),
        (errors.RevisionNotFoundError("x", response=RESPONSE), "no such file or revision"),
        (errors.EntryNotFoundError("x"), "no such file or revision"),
        (RuntimeError("cut off\nmore"), r"could not be downloaded \(cut off\): try again"),
    ],
)
def test_what_the_client_raises_becomes_a_sentence(monkeypatch, raised, said):
    def download(*_args, **_settings):
        raise raised

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(OSError, match=f"^hf://someone/quest/quest.pth .*{said}") as caught:
        local_file("hf://someone/quest/quest.pth")
    assert "\n" not in str(caught.value)
