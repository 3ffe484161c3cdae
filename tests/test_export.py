"""`lightning-ript export`: any QueST checkpoint as an official file, bit for bit."""

import lightning as L
import pytest
import torch
from test_quest_policy import TINY

from lightning_ript.cli import main
from lightning_ript.module import RIPTLightningModule
from lightning_ript.policies.quest import (
    QueST,
    QueSTConfig,
    QueSTPolicy,
    is_official,
    load_official,
    save_official,
)
from lightning_ript.policies.quest.export import PARTS
from lightning_ript.policies.toy import ToyPolicy


def lightning_checkpoint(policy, path):
    trainer = L.Trainer(accelerator="cpu", logger=False, default_root_dir=path.parent)
    trainer.strategy.connect(RIPTLightningModule(policy))
    trainer.save_checkpoint(path)


def same_bits(one, other):
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()
    )


@pytest.mark.parametrize("sizes", [TINY, QueSTConfig()], ids=["tiny", "published"])
def test_round_trip_is_bit_exact(tmp_path, sizes):
    torch.manual_seed(0)
    policy = QueSTPolicy(sizes)
    expected = policy.model.state_dict()
    expected["policy_prior.head.bias"][:2] = torch.tensor([-0.0, float("nan")])
    lightning_checkpoint(policy, tmp_path / "last.ckpt")
    main(["export", str(tmp_path / "last.ckpt"), str(tmp_path / "out/quest.pth")])
    main(["export", str(tmp_path / "out/quest.pth"), str(tmp_path / "again.pth")])
    for path in (tmp_path / "out/quest.pth", tmp_path / "again.pth"):
        assert is_official(path)
        contents = torch.load(path, weights_only=True)
        assert contents.keys() == {"model", "language"}  # the reference reads the first alone
        assert list(contents["model"]) == [f"module.{name}" for name in expected]
        assert all(same_bits(contents["model"][f"module.{n}"], v) for n, v in expected.items())
        other = QueST(sizes)
        load_official(other, path)
        assert all(same_bits(other.state_dict()[n], v) for n, v in expected.items())


def test_a_file_that_is_there_is_replaced_only_when_told(tmp_path, capsys):
    save_official(QueST(TINY), tmp_path / "quest.pth", "hashed")
    (tmp_path / "out.pth").write_text("precious")
    command = ["export", str(tmp_path / "quest.pth"), str(tmp_path / "out.pth")]
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 2
    assert "out.pth is there already: name another file, or add --overwrite" in (
        capsys.readouterr().err
    )
    assert (tmp_path / "out.pth").read_text() == "precious"
    main([*command, "--overwrite"])
    assert is_official(tmp_path / "out.pth")


def test_what_holds_no_quest_is_refused(tmp_path, capsys):
    lightning_checkpoint(ToyPolicy(), tmp_path / "toy.ckpt")
    torch.save({"model": {"module.backbone.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    weights = QueST(TINY).state_dict()
    half = {f"module.{n}": v for n, v in weights.items() if not n.startswith("policy_prior")}
    torch.save({"model": half}, tmp_path / "half.pth")
    for name, said in {
        "toy.ckpt": "is a Lightning checkpoint without a QueST policy",
        "other.pth": "holds no whole QueST: its parts are backbone, but should be autoencoder",
        "half.pth": "holds no whole QueST",
        "gone.pth": "There is no checkpoint at",
    }.items():
        with pytest.raises(SystemExit) as caught:
            main(["export", str(tmp_path / name), str(tmp_path / "out.pth")])
        assert caught.value.code == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()


def test_parts_are_quests():
    assert {name for name, _ in QueST(TINY).named_children()} == PARTS
