"""The supervised stage of flow-matching policies, a SmolVLA of one's own, and the way back."""

import json

import lightning as L
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_flow_golden import CLASSES, GOLDENS, load
from test_flow_policies import TASKS, observations
from test_hdf5 import SETTINGS, episode

from lightning_ript.cli import main
from lightning_ript.demos.datamodule import DemonstrationDataModule
from lightning_ript.demos.hdf5 import DemonstrationWriter
from lightning_ript.envs.libero.suites import suite_tasks
from lightning_ript.policies.contract import check_contract
from lightning_ript.policies.flow.adapter import DEMONSTRATED_STATE
from lightning_ript.policies.flow.fine_tuning import FlowFineTuning
from lightning_ript.policies.smolvla import SmolVLAPolicy
from lightning_ript.policies.smolvla.create import SmallSizes, new_smolvla

TINY = SmallSizes(
    image=16, patch=4, vision_width=24, vision_layers=1, width=32, layers=2, expert_width=24
)


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demonstrations")
    for task in suite_tasks("libero_object")[:2]:
        writer = DemonstrationWriter(folder / f"{task.name}_demo.hdf5", task, 8, SETTINGS)
        for number in range(3):
            writer.append(episode(number, steps=20))
    return folder


@pytest.fixture(scope="module")
def tiny(demonstrations, tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny") / "smolvla"
    new_smolvla(out, [str(demonstrations)], TINY, steps=4)
    return out


def data(demonstrations, **settings):
    chosen = {"lowdim": DEMONSTRATED_STATE, "block_size": 8, "batch_size": 8, **settings}
    return DemonstrationDataModule([str(demonstrations)], **chosen)


def test_a_new_smolvla_has_the_demonstrations_statistics(tiny, demonstrations):
    policy = SmolVLAPolicy(str(tiny))
    everything = data(demonstrations, validation_fraction=0)
    everything.setup("fit")
    arrays = [t.arrays for t in everything.training.trajectories]
    actions = np.concatenate([each["actions"] for each in arrays]).astype(np.float64)
    np.testing.assert_allclose(policy.published.action.first, actions.mean(0), atol=1e-6)
    np.testing.assert_allclose(policy.published.action.second, actions.std(0), atol=1e-6)
    assert (policy.steps, policy.executed_actions) == (4, 8)
    tokens = policy.prompts.tokens("pick up the alphabet soup and place it in the basket\n")
    assert 0 not in tokens, "a word of the demonstrations is unknown"
    check_contract(policy, observations(3), TASKS)
    with pytest.raises(FileExistsError, match="is there already"):
        new_smolvla(tiny, [str(demonstrations)], TINY)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"image": 20, "patch": 8}, "no whole number of patches of 8"),
        ({"width": 30}, "a width of 30 makes no 4 heads"),
        ({"kv_heads": 3}, "cannot share 3 heads of keys"),
        ({"vision_width": 128}, "a vision_width of 128 must be a multiple of 3"),
        ({"expert_width": 97}, "an expert_width of 97 even"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, said, demonstrations, tmp_path):
    with pytest.raises(ValueError, match=said):
        new_smolvla(tmp_path / "new", [str(demonstrations)], SmallSizes(**sizes))
    with pytest.raises(ValueError, match="executed_actions is 0, but a chunk has 8 actions"):
        new_smolvla(tmp_path / "new", [str(demonstrations)], executed_actions=0)
    assert not (tmp_path / "new").exists()


def test_demonstrations_are_seen_as_the_simulator_is(tiny, demonstrations):
    """The same picture and state from a file and from an observation."""
    policy = SmolVLAPolicy(str(tiny))
    module = data(demonstrations, validation_fraction=0)
    module.setup("fit")
    item = module.training[5]
    batch = torch.utils.data.default_collate([item])
    record, actions = policy.demonstrated(batch)
    seen = {name: item["images"][name] for name in policy.cameras}
    seen |= {"ee_pos": item["lowdim"]["ee_pos"], "gripper_states": item["lowdim"]["gripper_states"]}
    vector = item["lowdim"]["ee_ori"].astype(np.float64)
    angle = np.linalg.norm(vector)
    axis = vector / angle
    quaternion = np.append(axis * np.sin(angle / 2), np.cos(angle / 2))
    expected = policy.inputs([{**seen, "ee_quat": quaternion}], [item["language"]])
    assert torch.equal(record["images"], expected["images"])
    assert torch.equal(record["tokens"], expected["tokens"])
    torch.testing.assert_close(record["state"], expected["state"], atol=1e-4, rtol=0)
    back = policy.published.action.denormalize(actions[0, :, :7])
    np.testing.assert_allclose(back, item["actions"], atol=1e-5)


def test_fine_tuning_learns_and_its_checkpoint_starts_ript(tiny, demonstrations, tmp_path, capsys):
    torch.manual_seed(0)
    policy = SmolVLAPolicy(str(tiny), train="everything")
    module = FlowFineTuning(policy, lr=1e-3, color_jitter=0.1, translation=2, batches=2)
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        max_epochs=15,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    losses = []

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *batch):
            losses.append(trainer.callback_metrics["train/loss"].item())

    trainer.callbacks.append(Keep())
    trainer.fit(module, data(demonstrations))
    assert np.mean(losses[-10:]) < 0.95 * np.mean(losses[:10])
    assert np.isfinite(trainer.callback_metrics["val/loss"].item())
    checkpoint = tmp_path / "sft.ckpt"
    trainer.save_checkpoint(checkpoint)
    started = SmolVLAPolicy(str(tiny), weights=str(checkpoint))
    for name, value in policy.network.state_dict().items():
        assert torch.equal(started.network.state_dict()[name], value)
    # The folder does not have these weights, so what does not learn has to be saved as well.
    idle = {id(p) for module in started.network.idle_modules() for p in module.parameters()}
    assert {n for n, p in started.named_parameters() if not started.saved(n)} == {
        n for n, p in started.named_parameters() if id(p) in idle
    }
    with pytest.raises(ValueError, match="does not fit"):
        load("smolvla", weights=str(checkpoint))
    main(["export", str(checkpoint), str(tmp_path / "exported")])
    exported = SmolVLAPolicy(str(tmp_path / "exported"))
    for name, value in policy.network.state_dict().items():
        assert torch.equal(exported.network.state_dict()[name], value)
    assert torch.equal(exported.published.action.first, policy.published.action.first)
    fresh = SmolVLAPolicy(str(tiny))
    assert fresh.load_published(tmp_path / "exported")
    assert torch.equal(fresh.network.action_out_proj.weight, policy.network.action_out_proj.weight)
    assert not fresh.load_published(checkpoint)
    with pytest.raises(SystemExit):
        main(["export", str(checkpoint), str(tmp_path / "exported")])
    assert "is there already: name another folder" in capsys.readouterr().err


@pytest.mark.parametrize("kind", CLASSES)
def test_what_is_exported_is_what_was_read(kind, tmp_path):
    """Files of LeRobot come back as they were, heads that no action needs included."""
    if not (GOLDENS / kind).is_dir():
        pytest.skip(f"no golden tensors in {GOLDENS}")
    from lightning_ript.policies.flow.lerobot import write_published

    policy = load(kind)
    rename = policy.renaming(GOLDENS / kind)
    write_published(policy.published, tmp_path / "out", policy.network.state_dict(), rename)
    before = load_file(GOLDENS / kind / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for path in (GOLDENS / kind).glob("*.json"):
        if path.name not in ("sizes.json", "text.json"):
            written = json.loads((tmp_path / "out" / path.name).read_text())
            assert written == json.loads(path.read_text())
