"""Every YAML under configs/ goes through the command line, in the company it is meant for."""

from pathlib import Path

import pytest
import test_published
from test_supervised import TASK, write_demonstrations
from toy_runs import start

from lightning_ript.cli import main
from lightning_ript.storage.run_directory import history_path

QUICKSTART = [f"quickstart/{name}" for name in ("libero", "ript", "policy")]
TRAINERS = ["one_gpu", "four_gpus_ddp", "four_gpus_fsdp2", "two_nodes"]
# Which command takes which files together; as the Makefile does it.
COMMANDS = [
    ("fit", ["toy"]),
    ("validate", ["toy"]),
    ("fit", ["quest/autoencoder"]),
    ("fit", ["quest/sft"]),
    ("fit", ["quest/ript", "quest/libero_goal/ript"]),
    ("validate", ["quest/ript", "quest/libero_goal/ript", "quest/evaluation"]),
    (
        "validate",
        [f"openvla_oft/{name}" for name in ("ript", "libero_goal", "tokens", "simplevla_rl")],
    ),
    ("collect-demos", ["quickstart/demos"]),
    ("fit", ["quickstart/autoencoder", "quickstart/policy"]),
    ("fit", ["quickstart/sft", "quickstart/policy"]),
    ("fit", QUICKSTART),
    ("fit", ["smolvla/small/sft", "smolvla/small/policy"]),
    ("fit", ["flow/ript", "smolvla/one_24gb_gpu"]),
    *[
        ("fit", ["flow/ript", f"{family}/{suite}", f"trainers/{trainer}"])
        for family in ("pi0", "pi05")
        for suite, trainer in (
            ("libero_spatial", "one_gpu"),
            ("libero_object", "four_gpus_ddp"),
            ("libero_goal", "four_gpus_fsdp2"),
            ("libero_10", "two_nodes"),
        )
    ],
    ("fit", ["quickstart/libero", "smolvla/small/ript", "smolvla/small/policy"]),
    ("validate", [*QUICKSTART, "quickstart/before"]),
    ("validate", [*QUICKSTART, "quickstart/after"]),
    *[
        ("fit", [*below, f"ablations/{name}"])
        for below in (["toy"], QUICKSTART)
        for name in ("critic", "fitted_values", "no_dynamic_sampling", "initial_state_noise")
    ],
    *[
        ("fit", ["openvla_oft/ript", f"openvla_oft/{suite}", *more])
        for suite in ("libero_spatial", "libero_object", "libero_goal", "libero_10")
        for more in ([], ["openvla_oft/scale_head"], ["openvla_oft/tokens"])
    ],
    *[
        ("fit", [*below, f"trainers/{name}"])
        for below in (
            ["toy"],
            ["quest/ript", "quest/libero_goal/ript"],
            ["openvla_oft/ript", "openvla_oft/libero_goal"],
        )
        for name in TRAINERS
    ],
]
# What the files leave for the user to say.
DEMONSTRATIONS = {
    *("quest/autoencoder", "quest/sft", "quickstart/autoencoder", "quickstart/sft"),
    "smolvla/small/sft",
}
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def configs(names):
    return [f"--config=configs/{name}.yaml" for name in names]


def test_no_file_is_forgotten():
    folder = Path("configs")
    there = {str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml")}
    here = {name for _, names in COMMANDS for name in names}
    assert there == here | {f"quest/{name}" for name in test_published.FILES}


@pytest.mark.parametrize(("command", "names"), COMMANDS, ids=lambda x: str(x))
def test_it_parses(command, names, capsys):
    files = ["--data.init_args.files=[.]"] if DEMONSTRATIONS & set(names) else []
    if "smolvla/small/policy" in names:
        files.append("--model.init_args.policy.init_args.checkpoint=here")
    with pytest.raises(SystemExit) as caught:
        main([command, *configs(names), *files, "--print_config"])
    assert caught.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("trainer", "numbers"),
    [
        pytest.param("one_gpu", [], marks=pytest.mark.slow),
        ("four_gpus_ddp", ["--trainer.devices=2"]),
        ("four_gpus_fsdp2", ["--trainer.devices=2"]),
        pytest.param(
            *("two_nodes", ["--trainer.devices=2", "--trainer.num_nodes=1"]), marks=pytest.mark.slow
        ),
    ],
)
def test_trainers_run_without_gpus(trainer, numbers, tmp_path):
    """On two processes of this machine, as there is no other."""
    config = f"--config=configs/trainers/{trainer}.yaml"
    process = start(tmp_path, 1, config, "--trainer.accelerator=cpu", *numbers)
    out, err = process.communicate(timeout=800)
    assert process.returncode == 0, out + err
    assert (tmp_path / "checkpoints/last.ckpt").is_file()


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Both supervised stages, one batch of each, at the sizes of either folder."""

    def run(folder, size, companions):
        base = tmp_path_factory.mktemp(folder)
        (base / "demonstrations").mkdir()
        write_demonstrations(base / f"demonstrations/{TASK}_demo.hdf5", size=size)
        checkpoint = []
        for stage in ("autoencoder", "sft"):
            main(
                [
                    "fit",
                    *configs([f"{folder}/{stage}", *companions]),
                    *QUIET,
                    *checkpoint,
                    "--model.init_args.policy.init_args.language=hashed",
                    f"--run_dir={base}/{stage}",
                    f"--data.init_args.files=[{base}/demonstrations]",
                    "--data.init_args.batch_size=2",
                    "--data.init_args.validation_fraction=0.1",
                    "--trainer.accelerator=cpu",
                    "--trainer.max_epochs=1",
                    "--trainer.limit_train_batches=1",
                    "--trainer.limit_val_batches=1",
                    "--trainer.check_val_every_n_epoch=1",
                ]
            )
            last = base / stage / "checkpoints/last.ckpt"
            checkpoint = [f"--model.init_args.policy.init_args.checkpoint={last}"]
            assert last.is_file()
            assert last.with_name("best.ckpt").is_file()
        return last

    return run


def test_supervised_stages_at_full_size(stages):
    stages("quest", 128, [])


@pytest.mark.libero
def test_quickstart(stages, tmp_path, monkeypatch):
    """RIPT from what the supervised stages left, on the simulator, and its evaluation."""
    from lightning_ript.envs.libero.assets import cache_folder
    from lightning_ript.envs.libero.standins import build_standins

    sft = stages("quickstart", 64, ["quickstart/policy"])
    short = [
        *QUIET,
        f"--run_dir={tmp_path}",
        f"--data.init_args.environment.assets={build_standins(cache_folder())}",
        "--data.init_args.environment.max_steps=16",
        "--data.init_args.num_workers=2",
        "--data.init_args.eval_states_per_task=2",
        "--trainer.max_epochs=1",
        "--trainer.check_val_every_n_epoch=1",
    ]
    main(
        [
            "fit",
            *configs(QUICKSTART),
            *short,
            f"--model.init_args.policy.init_args.checkpoint={sft}",
            "--model.init_args.passes=1",
            "--data.init_args.groups_per_iteration=1",
            "--data.init_args.rollouts_per_context=2",
            # Nobody succeeds in 16 steps, so nothing would be kept.
            "--data.init_args.dynamic_sampling=false",
        ]
    )
    assert history_path(tmp_path).is_file()
    last = tmp_path / "checkpoints/last.ckpt"
    assert last.is_file()
    for checkpoint in (sft, last):
        main(["validate", *configs(QUICKSTART), *short, f"--ckpt_path={checkpoint}"])
    assert len(list((tmp_path / "evaluation").glob("*.json"))) >= 2
