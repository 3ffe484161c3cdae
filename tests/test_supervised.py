"""The supervised stages on made-up demonstrations: data, augmentation, training, the CLI chain."""

import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import h5py
import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.cli import LightningCLI

from lightning_ript.demos.datamodule import DemonstrationDataModule
from lightning_ript.demos.hdf5 import DemonstrationWriter, RecordedEpisode
from lightning_ript.envs.libero.suites import find_tasks
from lightning_ript.policies.augmentation import jitter_colors, translate
from lightning_ript.policies.quest import QueST, QueSTConfig, QueSTPolicy, save_official
from lightning_ript.policies.quest.stages import AutoencoderTraining, SupervisedFineTuning

TINY = QueSTConfig(
    image_size=16,
    image_width=8,
    image_embed_dim=16,
    lowdim_embed_dim=8,
    embed_dim=32,
    prior_layers=1,
    prior_heads=2,
    autoencoder_dim=32,
    encoder_layers=1,
    decoder_layers=1,
    autoencoder_heads=2,
)
LENGTHS = (20, 25, 40)
TASK = "pick_up_the_milk_and_place_it_in_the_basket"


def write_demonstrations(path, lengths=LENGTHS, size=16, instruction="Pick the milk"):
    """A file as LIBERO's, with a made-up instruction, holding only what training reads."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": instruction})
        for i, length in enumerate(lengths):
            demo = data.create_group(f"demo_{i}")
            phase = np.linspace(0, 3, length)[:, None] + np.arange(7)
            demo["actions"] = np.sin(phase)
            demo["states"] = phase
            images = rng.integers(0, 256, (2, length, size, size, 3), dtype=np.uint8)
            demo["obs/agentview_rgb"], demo["obs/eye_in_hand_rgb"] = images
            demo["obs/joint_states"] = phase
            demo["obs/ee_pos"] = phase[:, :3]
            demo["obs/ee_ori"] = phase[:, 3:6]
            demo["obs/gripper_states"] = phase[:, :2]
    return str(path)


@pytest.fixture
def demonstrations(tmp_path):
    return write_demonstrations(tmp_path / f"{TASK}_demo.hdf5")


@pytest.fixture
def policy(tmp_path):
    torch.manual_seed(0)
    save_official(QueST(TINY), tmp_path / "autoencoder.pth", "hashed")
    return QueSTPolicy(TINY, checkpoint=str(tmp_path / "autoencoder.pth"))


def data(files, **settings):
    module = DemonstrationDataModule([files], batch_size=16, **settings)
    module.setup("fit")
    return module


def trainer(tmp_path, **settings):
    return L.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


@pytest.mark.parity(
    area="QueST, supervised",
    point="Few demonstrations: the decoder",
    reference="learns as well, by the L1 loss of sampled tokens' actions, weight 10",
)
def test_the_decoder_is_tuned_by_what_it_makes_of_drawn_tokens(policy, demonstrations):
    batch = next(iter(data(demonstrations).train_dataloader()))
    frozen = SupervisedFineTuning(policy, translation=0, color_jitter=0).eval().metrics(batch)
    assert set(frozen) == {"loss", "accuracy"}
    autoencoder = policy.model.autoencoder
    assert not any(p.requires_grad for p in autoencoder.parameters())
    module = SupervisedFineTuning(policy, translation=0, color_jitter=0, decoder_weight=10.0)
    assert autoencoder.decoder.training
    assert not autoencoder.encoder.training
    module.eval()
    torch.manual_seed(3)
    metrics = module.metrics(batch)
    torch.testing.assert_close(metrics["cross_entropy"], frozen["loss"])
    torch.testing.assert_close(
        metrics["loss"], metrics["cross_entropy"] + 10 * metrics["decoder_error"]
    )
    metrics["loss"].backward()
    learns = {
        name.split(".")[0] for name, p in autoencoder.named_parameters() if p.grad is not None
    }
    assert learns == {"decoder"}
    # By hand: tokens from the softmax over all logits, mean absolute error of what they decode to.
    images = {name: module._prepare(value) for name, value in batch["images"].items()}
    with torch.no_grad():
        embedded = policy.embed(batch["language"])
        context = policy.model.encode_context(images, batch["lowdim"], embedded)
        indices = policy.model.action_indices(batch["actions"])
        logits = policy.model.prior_logits(context, indices)
        torch.manual_seed(3)
        flat = logits.softmax(-1).flatten(0, 1)
        drawn = torch.multinomial(flat, 1, replacement=True).view(indices.shape)
        error = (policy.model.decode(drawn) - batch["actions"]).abs().mean()
    torch.testing.assert_close(metrics["decoder_error"], error)


@pytest.mark.parametrize("in_memory", [False, True])
def test_items_are_what_the_file_holds(demonstrations, in_memory):
    module = data(demonstrations, in_memory=in_memory)
    training, validation = module.training, module.validation
    assert (len(training), len(validation)) == (20 + 25, 40)
    with h5py.File(demonstrations) as file:
        demo = file["data/demo_1"]
        item = training[20 + 3]
        # The file holds them upside down.
        seen = item["images"]
        assert np.array_equal(seen["agentview_rgb"], demo["obs/agentview_rgb"][3][::-1])
        assert np.array_equal(seen["eye_in_hand_rgb"], demo["obs/eye_in_hand_rgb"][3][::-1])
        for name in ("joint_states", "ee_pos", "gripper_states"):
            assert np.array_equal(item["lowdim"][name], demo["obs"][name][3].astype(np.float32))
        actions = demo["actions"][()].astype(np.float32)
        padding = np.repeat(actions[-1:], 32 - 22, axis=0)
        assert np.array_equal(item["actions"], np.concatenate([actions[3:], padding]))
        whole = file["data/demo_2/actions"][5:37].astype(np.float32)
        assert np.array_equal(validation[5]["actions"], whole)


def test_batches(demonstrations):
    batch = next(iter(data(demonstrations).train_dataloader()))
    assert batch["images"]["agentview_rgb"].shape == (16, 16, 16, 3)
    assert batch["images"]["agentview_rgb"].dtype == torch.uint8
    assert batch["lowdim"]["ee_pos"].shape == (16, 3)
    assert batch["lowdim"]["ee_pos"].dtype == batch["actions"].dtype == torch.float32
    assert batch["actions"].shape == (16, 32, 7)
    assert len(batch["language"]) == 16
    lone = next(iter(data(demonstrations, only_actions=True).train_dataloader()))
    assert lone.keys() == {"actions"}


def test_batches_from_worker_processes(demonstrations):
    module = data(demonstrations, num_workers=2)
    module.training[0]  # the parent's open file must not leak into the workers
    one = next(iter(module.val_dataloader()))
    module.num_workers = 0
    other = next(iter(module.val_dataloader()))
    assert torch.equal(one["images"]["agentview_rgb"], other["images"]["agentview_rgb"])


def test_instruction_is_the_benchmarks_where_the_file_is_named_after_a_task(tmp_path):
    named = write_demonstrations(tmp_path / f"{TASK}_demo.hdf5")
    other = write_demonstrations(tmp_path / "mine.hdf5")
    assert data(named).training[0]["language"] == TASK.replace("_", " ")
    assert data(other).training[0]["language"] == "Pick the milk"


def test_what_the_projects_writer_writes(tmp_path):
    task = find_tasks("libero_object", [TASK])[0]
    path = tmp_path / f"{TASK}_demo.hdf5"
    writer = DemonstrationWriter(path, task, image_size=16, settings={})
    rng = np.random.default_rng(0)
    widths = {"joint_states": 7, "ee_pos": 3, "ee_quat": 4, "gripper_states": 2}
    for attempt in range(2):
        observations = {name: rng.normal(size=(12, width)) for name, width in widths.items()}
        for camera in ("agentview_rgb", "eye_in_hand_rgb"):
            observations[camera] = rng.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
        actions = rng.uniform(-1, 1, (12, 7))
        states = rng.normal(size=(12, 50))
        writer.append(
            RecordedEpisode(actions, states, observations, states[0], "<mujoco/>", attempt)
        )
    module = data(path)
    item = module.validation[4]
    assert np.array_equal(item["images"]["agentview_rgb"], observations["agentview_rgb"][4])
    np.testing.assert_allclose(item["lowdim"]["gripper_states"], observations["gripper_states"][4])
    np.testing.assert_allclose(item["actions"][:8], actions[4:], rtol=1e-6)
    assert item["language"] == task.language
    assert len(module.training) == 12


def test_split(demonstrations):
    module = data(demonstrations, demonstrations_per_file=2)
    lengths = [each.demonstration.num_samples for each in module.training.trajectories]
    assert lengths == [20]
    assert [len(each) for each in (module.training, module.validation)] == [20, 40]
    module = data(demonstrations, validation_fraction=0)
    assert len(module.training) == sum(LENGTHS)
    assert module.val_dataloader() == []
    one = data(demonstrations, validation_fraction=0, demonstrations_per_file=1)
    assert (len(one.training), len(one.validation)) == (20, 0)
    with pytest.raises(ValueError, match="1 demonstrations to use, of which 1 would be held out"):
        data(demonstrations, demonstrations_per_file=1)


def test_a_folder_means_the_files_in_it(tmp_path):
    for name in "ab":
        write_demonstrations(tmp_path / f"{name}.hdf5")
    assert len(data(tmp_path).training) == 2 * (20 + 25)


def test_bad_files_are_refused(tmp_path, demonstrations):
    with pytest.raises(FileNotFoundError, match=r"no file of demonstrations at .*gone"):
        data(tmp_path / "gone.hdf5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no"):
        data(tmp_path / "empty")
    whole = Path(demonstrations).read_bytes()
    (tmp_path / "cut.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.hdf5 is damaged or no HDF5 file"):
        data(tmp_path / "cut.hdf5")
    with h5py.File(tmp_path / "foreign.hdf5", "w") as file:
        file["images"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"foreign\.hdf5 has no group"):
        data(tmp_path / "foreign.hdf5")
    with h5py.File(demonstrations, "a") as file:
        del file["data/demo_0/obs/ee_pos"]
    with pytest.raises(ValueError, match=r"no obs/ee_pos in data/demo_0"):
        data(demonstrations)


def test_translation_moves_each_image_by_its_own_shift():
    torch.manual_seed(0)
    images = torch.rand(200, 3, 12, 12)
    moved = translate(images, 4)
    shifts = set()
    for before, after in zip(images, moved, strict=True):
        found = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.equal(after[:, 2:-2, 2:-2], before[:, 2 + dy : 10 + dy, 2 + dx : 10 + dx])
        ]
        assert len(found) == 1
        shifts.add(found[0])
    assert len(shifts) == 25
    assert torch.equal(translate(images, 0), images)


def test_color_jitter():
    torch.manual_seed(0)
    images = torch.rand(1000, 3, 4, 4) * 0.2 + 0.4  # nothing is clipped
    jittered = jitter_colors(images, 0.3)
    same = (jittered - images).flatten(1).abs().amax(1) < 1e-5
    assert 0.07 < same.float().mean() < 0.13
    luma = torch.tensor([0.299, 0.587, 0.114])
    # Brightness alone moves the mean luma; contrast, saturation and hue leave it.
    ratio = (jittered.mean((2, 3)) @ luma) / (images.mean((2, 3)) @ luma)
    assert ratio.min() > 0.699
    assert ratio.max() < 1.301
    assert ratio.std() > 0.1
    # Turning the hue by up to 0.3 of a turn leaves grey images grey.
    grey = images[:, :1].expand(-1, 3, -1, -1)
    turned = jitter_colors(grey, 0.3)
    torch.testing.assert_close(turned[:, 0], turned[:, 2], atol=1e-3, rtol=0)
    assert jitter_colors(torch.ones(50, 3, 4, 4), 0.5).max() == 1
    assert torch.equal(jitter_colors(images, 0), images)


def test_autoencoder_learns_and_touches_nothing_else(demonstrations, tmp_path):
    torch.manual_seed(0)
    module = AutoencoderTraining(QueSTPolicy(TINY), lr=3e-3)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    fit = trainer(tmp_path, max_epochs=25)
    fit.fit(module, datamodule=data(demonstrations, only_actions=True))
    assert fit.callback_metrics["val/loss"] < 0.3
    assert module.policy.model.autoencoder.encoder.layers[0].dropout.training
    changed = {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(k.startswith("policy.model.autoencoder.") for k in changed)
    assert fit.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-5)


def test_a_run_that_is_made_longer_follows_the_longer_cosine():
    def scheduler(steps):
        module = AutoencoderTraining(QueSTPolicy(TINY), lr=1e-3, min_lr=1e-4)
        module.trainer = SimpleNamespace(estimated_stepping_batches=steps)
        made = module.configure_optimizers()
        return made["optimizer"], made["lr_scheduler"]["scheduler"]

    def run(optimizer, scheduler, steps):
        for _ in range(steps):
            optimizer.step()
            scheduler.step()
        return scheduler.get_last_lr()[0]

    short, long = scheduler(10), scheduler(20)
    assert run(*short, 10) == pytest.approx(1e-4)
    long[1].load_state_dict(short[1].state_dict())
    assert run(*long, 5) == pytest.approx(1e-4 + 9e-4 * (1 - math.sqrt(0.5)) / 2)
    assert run(*long, 5) == pytest.approx(1e-4)


def test_collapsed_tokens_are_warned_about(demonstrations, tmp_path):
    def fit(module):
        fitter = trainer(tmp_path, max_epochs=1)
        fitter.fit(module, data(demonstrations))
        return int(fitter.callback_metrics["val/tokens_used"])

    module = AutoencoderTraining(QueSTPolicy(TINY))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The autoencoder uses only")
        module._used[:] = True  # of an epoch before
        used = fit(module)
    module.eval()
    blocks = data(demonstrations).val_dataloader().dataset
    expected = {
        int(token)
        for item in blocks
        for token in module.policy.model.action_indices(
            torch.as_tensor(item["actions"])[None]
        ).flatten()
    }
    assert used == len(expected) > 8
    with torch.no_grad():
        for parameter in module.policy.model.autoencoder.parameters():
            parameter.zero_()
    module.lr = module.min_lr = 0.0
    with pytest.warns(UserWarning, match="uses only 1 of 1000 skill tokens"):
        assert fit(module) == 1


def test_fine_tuning_learns_and_leaves_the_autoencoder(demonstrations, tmp_path, policy):
    module = SupervisedFineTuning(policy, lr=2e-3)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    fit = trainer(tmp_path, max_steps=60)
    fit.fit(module, datamodule=data(demonstrations, in_memory=True))
    assert fit.callback_metrics["train/loss"] < 4 < np.log(1000)
    assert {"val/loss", "val/accuracy"} <= fit.callback_metrics.keys()
    changed = {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
    frozen = "policy.model.autoencoder."
    assert not any(k.startswith(frozen) for k in changed)
    for part in ("policy_prior.head.weight", "obs_proj.weight", "task_encoder.weight"):
        assert f"policy.model.{part}" in changed
    for part in ("resnet18_base.0.weight", "resnet18_base.1.running_mean"):
        assert f"policy.model.image_encoders.agentview_rgb.{part}" in changed


def test_modes_of_fine_tuning(policy):
    model = SupervisedFineTuning(policy).train().policy.model
    assert model.policy_prior.drop.training
    assert model.image_encoders["agentview_rgb"].block_1.bn1.training
    assert not any(module.training for module in model.autoencoder.modules())


def test_validation_is_neither_augmented_nor_random(demonstrations, policy):
    module = SupervisedFineTuning(policy).eval()
    batch = next(iter(data(demonstrations).val_dataloader()))
    with torch.no_grad():
        one, other = module.metrics(batch)["loss"], module.metrics(batch)["loss"]
        assert one == other
        module.train()
        assert module.metrics(batch)["loss"] != module.metrics(batch)["loss"]


def test_bad_settings_are_refused(policy):
    with pytest.raises(ValueError, match="needs a trained autoencoder"):
        SupervisedFineTuning(QueSTPolicy(TINY))
    with pytest.raises(ValueError, match="translation is 3"):
        SupervisedFineTuning(policy, translation=3)
    with pytest.raises(ValueError, match=r"color_jitter is 0\.6"):
        SupervisedFineTuning(policy, color_jitter=0.6)
    with pytest.raises(ValueError, match="min_lr"):
        AutoencoderTraining(policy, lr=1e-6)
    with pytest.raises(ValueError, match="validation_fraction is 1"):
        DemonstrationDataModule(["a"], validation_fraction=1)
    with pytest.raises(ValueError, match="files is empty"):
        DemonstrationDataModule([]).setup("fit")


def test_blocks_of_another_length_are_refused(demonstrations, policy):
    batch = next(iter(data(demonstrations, block_size=16).train_dataloader()))
    with pytest.raises(ValueError, match="blocks of 32 actions, but got blocks of 16"):
        SupervisedFineTuning(policy).metrics(batch)


def test_images_of_another_size_are_refused(tmp_path, policy):
    file = write_demonstrations(tmp_path / "large.hdf5", size=24)
    batch = next(iter(data(file).train_dataloader()))
    with pytest.raises(ValueError, match=r"\(3, 16, 16\).*\(3, 24, 24\)"):
        SupervisedFineTuning(policy).metrics(batch)


def run_stage(stage, tmp_path, demonstrations, *arguments):
    """Runs a stage through LightningCLI; returns its last checkpoint."""
    module = "lightning_ript.policies.quest.stages." + stage
    sizes = {**TINY.__dict__, "fsq_levels": list(TINY.fsq_levels)}
    policy = {"class_path": "lightning_ript.policies.quest.QueSTPolicy"}
    policy["init_args"] = {"sizes": sizes}
    loader = {"class_path": "lightning_ript.demos.datamodule.DemonstrationDataModule"}
    loader["init_args"] = {"files": [demonstrations], "batch_size": 16}
    config = {
        "seed_everything": 0,
        "model": {"class_path": module, "init_args": {"policy": policy}},
        "data": loader,
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "default_root_dir": str(tmp_path / stage),
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    path = tmp_path / f"{stage}.json"
    path.write_text(json.dumps(config))
    cli = LightningCLI(
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},
        args=["fit", "--config", str(path), *arguments],
    )
    return cli.trainer.checkpoint_callback.best_model_path, cli.model


def test_stages_chain_through_the_command_line(tmp_path, demonstrations):
    checkpoint, learned = run_stage("AutoencoderTraining", tmp_path, demonstrations)
    autoencoder = learned.policy.model.autoencoder.state_dict()
    setting = "--model.init_args.policy.init_args.checkpoint=" + checkpoint
    checkpoint, tuned = run_stage("SupervisedFineTuning", tmp_path, demonstrations, setting)
    result = QueSTPolicy(TINY, checkpoint=checkpoint).model
    for name, value in result.autoencoder.state_dict().items():
        assert torch.equal(value, autoencoder[name])
    for name, value in result.state_dict().items():
        assert torch.equal(value, tuned.policy.model.state_dict()[name])
    # The same command with a checkpoint to resume from goes on where it stopped.
    _, resumed = run_stage(
        "SupervisedFineTuning",
        tmp_path,
        demonstrations,
        setting,
        f"--ckpt_path={checkpoint}",
        "--trainer.max_epochs=2",
    )
    assert resumed.trainer.global_step == 2 * tuned.trainer.global_step
