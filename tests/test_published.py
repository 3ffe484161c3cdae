"""What the commands of the published experiments come to: the reference's numbers."""

from pathlib import Path

import pytest
import yaml

from lightning_ript.cli import main
from lightning_ript.demos.find_files import task_name
from lightning_ript.envs.libero.suites import suite_tasks

SUITES = {
    "libero_90": "90",
    "libero_goal": "GOAL",
    "libero_10": "LONG",
    "libero_object": "OBJECT",
    "libero_spatial": "SPATIAL",
}
FILES = {
    *(f"{suite}/{stage}" for suite in SUITES for stage in ("autoencoder", "sft", "ript")),
    *(f"few_shot/{stage}" for stage in ("sft", "ript")),
    *(f"transfer/source_{stage}" for stage in ("autoencoder", "sft")),
    *(f"transfer/cross_{to}_{stage}" for to in ("scenario", "goal") for stage in ("sft", "ript")),
}
MODEL = {
    "policy.executed_actions": 8,
    "policy.sizes.block_size": 32,
    "policy.sizes.downsample_factor": 4,
    "policy.sizes.fsq_levels": [8, 5, 5, 5],
    "policy.sizes.autoencoder_dim": 256,
    "policy.sizes.encoder_layers": 2,
    "policy.sizes.decoder_layers": 4,
    "policy.sizes.autoencoder_heads": 4,
    "policy.sizes.embed_dim": 384,
    "policy.sizes.prior_layers": 6,
    "policy.sizes.prior_heads": 6,
    "policy.sizes.image_size": 128,
    "policy.sizes.image_embed_dim": 256,
    "policy.sizes.lowdim_embed_dim": 128,
}
ACTING = {
    "policy.top_k": 5,
    "policy.temperature": 1.0,
    "policy.score": "full",
    "policy.language": "clip",
}
AUTOENCODER = {
    "model": MODEL | {"lr": 1e-4, "min_lr": 1e-5, "weight_decay": 1e-4},
    "data": {
        "batch_size": 256,
        "block_size": 32,
        "only_actions": True,
        "demonstrations_per_file": None,
        "validation_fraction": 0,
    },
    "trainer": {"max_epochs": 100},
}
SFT = {
    "model": MODEL | ACTING | {"lr": 1e-4, "min_lr": 1e-5, "color_jitter": 0.3, "translation": 4},
    "data": {
        "batch_size": 128,
        "block_size": 32,
        "validation_fraction": 0,
        "before_action": False,
    },
    "trainer": {"max_epochs": 200},
}
ALL_OF_THEM = {"data": {"demonstrations_per_file": None}, "model": {"decoder_weight": 0.0}}
LIBERO_90_SFT = SFT | {"trainer": {"max_epochs": 20}}
RIPT = {
    "model": MODEL
    | ACTING
    | {
        "advantage": "leave_one_out",
        "passes": 20,
        "episodes_per_minibatch": 6,
        "clip_low": 0.2,
        "clip_high": 0.2,
        "kl_coefficient": 0.0,
        "max_grad_norm": 1.0,
        "optimizer.class_path": "torch.optim.AdamW",
        "optimizer.lr": 1e-6,
        "optimizer.betas": [0.9, 0.999],
        "optimizer.weight_decay": 1e-4,
    },
    "data": {
        "rollouts_per_context": 8,
        "groups_per_iteration": 180,
        "stop_fraction": 0.8,
        "dynamic_sampling": True,
        "eval_sampling": True,
        "environment.max_steps": 600,
        "environment.image_size": 128,
        "environment.render": "full",
    },
    "trainer": {"reload_dataloaders_every_n_epochs": 1},
}
SMALL_SUITES = {
    "model": {
        "loss_aggregation": "token",
        "minibatch_parts": 3,
        "scheduler.class_path": "torch.optim.lr_scheduler.CosineAnnealingLR",
        "scheduler.T_max": 20,
        "scheduler.eta_min": 9e-7,
        "scheduler_interval": 2,
    },
    "trainer": {"max_epochs": 30, "check_val_every_n_epoch": 1},
}
LIBERO_90 = {
    "model": {"loss_aggregation": "sequence", "scheduler": None},
    "trainer": {"max_epochs": 15, "check_val_every_n_epoch": 3},
}


def resolved(capsys, *names, more=()):
    """The whole configuration that a stage and what goes on top of it come to."""
    assert FILES.issuperset(names[1:])
    return printed(capsys, "fit", "quest", names, more)


def printed(capsys, command, folder, names, more=()):
    """The configuration that a command would run with."""
    files = [f"--config=configs/{folder}/{name}.yaml" for name in names]
    with pytest.raises(SystemExit) as caught:
        main([command, *files, *more, "--print_config"])
    out, err = capsys.readouterr()
    assert caught.value.code == 0, err
    return yaml.safe_load(out)


def value(section, name):
    """Looks `a.b` up, with or without the `init_args` between."""
    for part in name.split("."):
        section = section[part] if part in section else section["init_args"][part]
    return section


def check(config, *expected):
    for section, numbers in ((s, n) for table in expected for s, n in table.items()):
        for name, number in numbers.items():
            assert value(config[section], name) == number, f"{section}.{name}"


@pytest.mark.parity(
    area="QueST",
    point="Epochs of SFT",
    reference="200; LIBERO-90: 20; all 50 demonstrations",
)
@pytest.mark.parity(
    area="Loss",
    point="QueST on 6 GPUs: LIBERO-90",
    reference="mean over episodes of each one's mean over tokens (one per GPU)",
    ours="the same: `loss_aggregation: sequence`",
)
@pytest.mark.parity(
    area="Schedule",
    point="QueST's learning rate",
    reference="cosine, T_max 20 to 9e-7, a step every second iteration; LIBERO-90: constant 1e-6",
)
@pytest.mark.parametrize("suite", SUITES)
def test_the_stages_of_a_suite(suite, capsys):
    """Each stage takes the same suite and goes on from the stage before."""
    autoencoder = resolved(capsys, "autoencoder", f"{suite}/autoencoder")
    check(autoencoder, AUTOENCODER, {"data": {"files": [f"datasets/{suite}"]}})
    sft = resolved(capsys, "sft", f"{suite}/sft")
    stage = LIBERO_90_SFT if suite == "libero_90" else SFT
    check(sft, stage, ALL_OF_THEM, {"data": {"files": [f"datasets/{suite}"]}})
    last = f"{autoencoder['run_dir']}/checkpoints/last.ckpt"
    assert value(sft["model"], "policy.checkpoint") == last
    ript = resolved(capsys, "ript", f"{suite}/ript")
    check(ript, RIPT, LIBERO_90 if suite == "libero_90" else SMALL_SUITES)
    where = {
        "environment.suite": suite,
        "environment.task_subset": None,
        "contexts.files": [f"datasets/{suite}"],
    }
    published = f"hf://tanshh97/RIPT_VLA/quest/LIBERO_{SUITES[suite]}_sft.pth"
    check(ript, {"data": where, "model": {"policy.checkpoint": published}})
    assert len({config["run_dir"] for config in (autoencoder, sft, ript)}) == 3


@pytest.mark.parity(
    area="QueST, supervised",
    point="Few demonstrations: start and length",
    reference="LIBERO-90's autoencoder, 200 epochs",
)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 10])
def test_few_demonstrations(count, capsys):
    suite = "libero_10"
    few = [f"--data.init_args.demonstrations_per_file={count}"]
    sft = resolved(capsys, "sft", f"{suite}/sft", "few_shot/sft", more=few)
    files = {"files": [f"datasets/{suite}"], "demonstrations_per_file": count}
    autoencoder = resolved(capsys, "autoencoder", "libero_90/autoencoder")["run_dir"]
    decoder = {
        "decoder_weight": 10.0,
        "policy.checkpoint": f"{autoencoder}/checkpoints/last.ckpt",
    }
    check(sft, SFT, {"data": files, "model": decoder})
    few = [f"--data.init_args.contexts.per_task={count}"]
    ript = resolved(capsys, "ript", f"{suite}/ript", "few_shot/ript", more=few)
    contexts = {"contexts.per_task": count, "contexts.files": [f"datasets/{suite}"]}
    start = {"policy.checkpoint": f"{sft['run_dir']}/checkpoints/last.ckpt"}
    check(ript, RIPT, SMALL_SUITES, {"data": contexts, "model": start})


@pytest.mark.parametrize("kind", ["cross_scenario", "cross_goal"])
def test_transfer(kind, capsys):
    """The source's autoencoder and SFT, SFT on one demonstration of the target, RIPT there."""
    source = resolved(capsys, "sft", "transfer/source_sft")
    check(source, SFT, ALL_OF_THEM)
    check(resolved(capsys, "autoencoder", "transfer/source_autoencoder"), AUTOENCODER)
    sft = resolved(capsys, "sft", f"transfer/{kind}_sft")
    start = {"policy.checkpoint": f"{source['run_dir']}/checkpoints/last.ckpt"}
    check(sft, SFT, {"model": start, "data": {"demonstrations_per_file": 1}})
    ript = resolved(capsys, "ript", f"transfer/{kind}_ript")
    start = {"policy.checkpoint": f"{sft['run_dir']}/checkpoints/last.ckpt"}
    check(ript, RIPT, SMALL_SUITES, {"model": start, "data": {"contexts.per_task": 1}})
    (task,) = value(ript["data"], "environment.task_subset")
    (learned,) = value(source["data"], "files")
    (shown,) = value(sft["data"], "files")
    assert shown == f"datasets/libero_90/{task}_demo.hdf5" != learned
    assert value(ript["data"], "contexts.files") == [shown]
    scenes, goals = zip(*(_scene_and_goal(file) for file in (learned, shown)), strict=True)
    assert (scenes[0] == scenes[1]) == (kind == "cross_goal")
    assert (goals[0] == goals[1]) == (kind == "cross_scenario")


def _scene_and_goal(file):
    from lightning_ript.envs.libero.suites import find_tasks

    name = file.split("/")[-1].removesuffix("_demo.hdf5")
    (task,) = find_tasks("libero_90", [name])
    return name.removesuffix(task.language.replace(" ", "_")), task.language


@pytest.mark.parity(
    area="Loss",
    point="OpenVLA-OFT",
    reference="mean over episodes of each one's mean over its actions",
    ours="the same: `loss_aggregation: sequence`",
)
@pytest.mark.parity(
    area="OpenVLA-OFT",
    point="Settings of the four suites",
    reference="published configurations",
)
@pytest.mark.parametrize(
    ("suite", "lr", "scale", "steps", "tasks"),
    [
        ("libero_spatial", 5e-5, 2.0, 220, 10),
        ("libero_object", 5e-5, 5.0, 280, 4),
        ("libero_goal", 1e-5, 5.0, 300, 10),
        ("libero_10", 5e-5, 5.0, 520, 4),
    ],
)
def test_openvla_oft(suite, lr, scale, steps, tasks, capsys):
    config = printed(capsys, "fit", "openvla_oft", ("ript", suite))
    model = {
        "advantage": "leave_one_out",
        "passes": 1,
        "episodes_per_minibatch": 16,
        "loss_aggregation": "sequence",
        "scheduler": None,
        "clip_low": 0.1,
        "clip_high": 0.1,
        "max_grad_norm": 1.0,
        "optimizer.lr": lr,
        "optimizer.weight_decay": 1e-4,
        "policy.lora.r": 32,
        "policy.lora.alpha": 16,
        "policy.forward": "prefix_cache",
        "policy.score": "full",
        "policy.dimension_aggregation": "sum",
        "policy.sampling_scale": scale,
        "policy.executed_actions": 8,
        "policy.checkpoint": f"hf://moojink/openvla-7b-oft-finetuned-{suite.replace('_', '-')}",
    }
    data = {
        "rollouts_per_context": 8,
        "groups_per_iteration": 24,
        "dynamic_sampling": True,
        "eval_sampling": False,
        "eval_states_per_task": None,
        "environment.suite": suite,
        "environment.task_subset": None,
        "environment.max_steps": steps,
        "environment.image_size": 256,
        "environment.settle_steps": 10,
    }
    trainer = {"max_epochs": 12, "check_val_every_n_epoch": 1}
    check(config, {"model": model, "data": data, "trainer": trainer})
    named = value(config["data"], "contexts.files")
    assert len(named) == (1 if tasks == 10 else tasks)
    quota = value(config["data"], "max_groups_per_task")
    assert quota == (None if tasks == 10 else 24 // tasks)
    known = {task.name for task in suite_tasks(suite)}
    assert tasks == 10 or {task_name(Path(file)) for file in named} < known


@pytest.mark.parity(
    area="Evaluation",
    point="QueST's test states",
    reference="48 of the 50 of a task",
    ours="the same with configs/quest/evaluation.yaml; by default all 50",
)
def test_quests_own_evaluation(capsys):
    names = ("ript", "libero_goal/ript", "evaluation")
    config = printed(capsys, "validate", "quest", names)
    expected = {
        "eval_states_per_task": 48,
        "eval_sampling": True,
        "environment.protocol": "reference",
        "environment.max_steps": 600,
    }
    check(config, {"data": expected})


@pytest.mark.parity(
    area="Evaluation",
    point="SimpleVLA-RL's token checkpoints",
    reference="512 steps, sampling at temperature 1.6, evaluation on the most likely actions",
    ours="the same with configs/openvla_oft/simplevla_rl.yaml",
)
def test_simplevla_rl(capsys):
    names = ("ript", "libero_spatial", "tokens", "simplevla_rl")
    config = printed(capsys, "validate", "openvla_oft", names)
    model = {"policy.temperature": 1.6, "clip_low": 0.2, "clip_high": 0.28}
    data = {"environment.max_steps": 512, "eval_sampling": False, "environment.settle_steps": 10}
    check(config, {"model": model, "data": data})
