"""Whatever is wrong with what a user gives, one sentence says it before anything expensive."""

import ctypes.util
import errno
import json
import re
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from toy_runs import SHORT, fit, refusal

from lightning_ript.datamodule import RolloutDataModule
from lightning_ript.envs.libero.suites import bddl_path, suite_tasks
from lightning_ript.envs.pool import EnvironmentPool
from lightning_ript.policies.toy import ToyPolicy

ENVIRONMENT = "--data.environment"
LIBERO = [
    f"{ENVIRONMENT}=lightning_ript.envs.libero.LiberoSpec",
    f"{ENVIRONMENT}.suite=libero_object",
    "--data.num_workers=1",
]
OWN_TASK = [*LIBERO, f"{ENVIRONMENT}.suite=mine"]
CONTEXTS = "--data.contexts"
DEMONSTRATIONS = f"{CONTEXTS}=lightning_ript.contexts.DemonstrationContexts"
OPENVLA = "--model.policy=lightning_ript.policies.openvla_oft.OpenVLATokenPolicy"


class NotANumber(ToyPolicy):
    """Acts with NaN."""

    def __init__(self):
        super().__init__()
        self.directions.fill_(float("nan"))


@dataclass(frozen=True)
class Bad:
    """Something that is wrong.

    Attributes:
        said: A pattern of what the sentence says.
        typed: A whole command; or, beginning with an option, what a short toy run gets as well.
            `{}` is the folder of the fixture `bad`.
        reached: How far the command gets: it is `parsed`, its parts are `built`, or it has `begun`.
        around: What changes in this process, given monkeypatch.
    """

    said: str
    typed: list[str]
    reached: str = "parsed"
    around: object = None


def no_gl(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)


def locked(monkeypatch):
    real = Path.open

    def refuse(path, *arguments, **settings):
        if path.name == "locked.ckpt":
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable", str(path))
        return real(path, *arguments, **settings)

    monkeypatch.setattr(Path, "open", refuse)


COMMANDS = {
    "an unknown command": Bad("no command validat: did you mean validate", ["validat"]),
    "a command like no other": Bad("no command xyzzy: `lightning-ript --help`", ["xyzzy"]),
    "an unknown subcommand": Bad("'downlaod' is none of .*mean download", ["data", "downlaod"]),
    "no config": Bad("Nothing says what data and model are: name a --config", ["fit"]),
    "a sweep of nothing": Bad(
        "--checkpoints and --out are missing", ["sweep", "--config=configs/toy.yaml"]
    ),
    **{
        f"an unknown option of {command}": Bad("--nonsense", [*command.split(), "--nonsense=1"])
        for command in ("report", "collect-demos", "sweep", "compare", "export", "data check")
    },
}
SETTINGS = {
    "an unknown option": Bad("arguments: --modle=3: did you mean --model", ["--modle=3"]),
    "an unknown option of the trainer": Bad(
        "max_epohcs.*mean.*max_epochs", ["--trainer.max_epohcs=3"]
    ),
    "an unknown key": Bad(
        "data has no setting rollouts_per_contex: did you mean rollouts_per_context",
        ["--data.rollouts_per_contex=3"],
    ),
    "a key like no other": Bad(
        "data has no setting xyzzy: RolloutDataModule has environment, ", ["--data.xyzzy=3"]
    ),
    "an unknown key of a class within": Bad(
        r"data\.environment has no setting num_taks: did you mean num_tasks",
        ["--data.init_args.environment.num_taks=3"],
    ),
    "an unknown key of an optimizer": Bad(
        r"model\.optimizer has no setting weight_deca: did you mean weight_decay",
        ["--model.optimizer.weight_deca=3"],
    ),
    "no whole number": Bad(
        r"trainer\.max_epochs is 'x', but must be a whole number", ["--trainer.max_epochs=x"]
    ),
    "no number": Bad(r"model\.clip_low is 'abc', but must be a number", ["--model.clip_low=abc"]),
    "neither true nor false": Bad(
        r"data\.dynamic_sampling is 'maybe', but must be true or false",
        ["--data.dynamic_sampling=maybe"],
    ),
    "none of the choices": Bad(
        "is 'nosuch', but must be leave_one_out, group_normalized, plain or the import path",
        ["--model.advantage", "nosuch"],
    ),
    "no value": Bad(r"trainer\.max_epochs is empty", ["--trainer.max_epochs="]),
    "a module that cannot be imported": Bad(
        r"model names nosuch\.Module, which cannot be imported", ["--model=nosuch.Module"]
    ),
    "an unknown class": Bad(
        r"model\.policy names .*ToyPolic, which does not exist: did you mean ToyPolicy",
        ["--model.policy=lightning_ript.policies.toy.ToyPolic"],
    ),
    "an unknown optimizer": Bad(
        r"names torch\.optim\.Adamm, which does not exist: did you mean Adam",
        ["--model.optimizer=torch.optim.Adamm"],
    ),
    "a class of another kind": Bad(
        r"model\.policy names torch\.nn\.Linear, which is not a PolicyAdapter",
        ["--model.policy=torch.nn.Linear"],
    ),
    "a setting that has to be": Bad(
        r"is a LiberoSpec and needs suite: set data\.environment\.suite", LIBERO[:1]
    ),
    "a root beside the run directory": Bad(
        r"trainer\.default_root_dir is what --run_dir says", ["--trainer.default_root_dir=here"]
    ),
    "barebones": Bad("trainer.barebones is true", ["--trainer.barebones=true"], "built"),
    "a fast development run": Bad(
        "trainer.fast_dev_run takes one batch", ["--trainer.fast_dev_run=true"], "built"
    ),
    "K = 1": Bad(r"\(K\) is 1", ["--data.init_args.rollouts_per_context=1"], "built"),
    "no passes": Bad("model.passes is 0", ["--model.passes=0"], "built"),
    "no optimizer": Bad("model.optimizer is null", ["--model.optimizer=null"], "built"),
    "no tasks": Bad("ToySpec.num_tasks is 0", [f"{ENVIRONMENT}.num_tasks=0"], "built"),
    "loaders that stay": Bad(
        "reload_dataloaders_every_n_epochs to 1",
        ["--trainer.reload_dataloaders_every_n_epochs=0"],
        "built",
    ),
    "loaders that stay twice": Bad(
        "reload_dataloaders_every_n_epochs to 1",
        ["--trainer.reload_dataloaders_every_n_epochs=2"],
        "built",
    ),
    "a part of an iteration": Bad(
        "limit_train_batches is 1, but an iteration", ["--trainer.limit_train_batches=1"], "built"
    ),
    "an evaluation within an iteration": Bad(
        "val_check_interval is 0.5, but an iteration", ["--trainer.val_check_interval=0.5"], "built"
    ),
    "optimizer steps": Bad(
        "trainer.max_steps is 7, but optimizer steps end within", ["--trainer.max_steps=7"], "built"
    ),
    "a schedule that waits for a metric": Bad(
        "ReduceLROnPlateau, but the schedule counts iterations",
        [
            "--model.scheduler=lightning.pytorch.cli.ReduceLROnPlateau",
            "--model.scheduler.monitor=val/success_rate",
        ],
        "built",
    ),
    "NaN actions": Bad("non-finite action", ["--model.policy=test_bad_inputs.NotANumber"], "begun"),
}
CONFIGS = {
    "no such config": Bad("nothing.yaml, which does not exist", ["--config=nothing.yaml"]),
    "a config with a typing error": Bad("did you mean quest/ript", ["--config", "quest/rip"]),
    "a folder": Bad("configs, which is a folder", ["--config=configs"]),
    "a tab": Bad(r"tab\.yaml is not YAML in line 2: a tab", ["--config={}/tab.yaml"]),
    "no YAML": Bad(r"open\.yaml is not YAML in line \d: expected", ["--config={}/open.yaml"]),
    "nothing in it": Bad(r"empty\.yaml holds nothing", ["--config={}/empty.yaml"]),
    "a list": Bad(r"list\.yaml holds a list", ["--config={}/list.yaml"]),
    "no text": Bad(r"binary\.yaml is not text", ["--config={}/binary.yaml"]),
    "a wrong key": Bad(r"mean trainer\.max_epochs", ["--config={}/key.yaml"]),
    "a wrong key of a class": Bad(
        "model has no setting pases: did you mean passes", ["--config={}/class.yaml"]
    ),
}
PLACES = {
    "a variable that is not set": Bad(r"names \$NO_SUCH_VARIABLE", ["--run_dir=$NO_SUCH_VARIABLE"]),
    "no run directory": Bad("--run_dir is empty", ["--run_dir="]),
    "a run directory in a file": Bad("file is a file", ["--run_dir={}/file"]),
    "a run directory below a file": Bad(
        "--run_dir .* cannot be made: Not a directory", ["--run_dir={}/file/below"]
    ),
    "a run directory that may not be": Bad(
        "--run_dir /proc/nothing cannot be made", ["--run_dir=/proc/nothing"]
    ),
    "a report that may not be": Bad(
        "--out /proc/nothing cannot be made", ["report", "{}/run", "--out=/proc/nothing/page.html"]
    ),
    "a report in place of a folder": Bad(
        "run is a folder: name a file", ["report", "{}/run", "--out={}/run"]
    ),
    "a comparison that may not be": Bad(
        "--out /proc/nothing cannot be made", ["compare", "{}/run", "--out=/proc/nothing"]
    ),
    "a sweep that may not be": Bad(
        "--out /proc/nothing cannot be made",
        ["sweep", "--config=configs/toy.yaml", "--checkpoints=[x]", "--out=/proc/nothing"],
    ),
    "demonstrations that may not be": Bad(
        "--out /proc/nothing cannot be made", ["collect-demos", "--out=/proc/nothing"]
    ),
    "an export that may not be": Bad(
        "The folder /proc/nothing cannot be made",
        ["export", "{}/flow.ckpt", "/proc/nothing/policy"],
    ),
}
CHECKPOINTS = {
    "none": Bad("nothing.ckpt, which does not exist", ["--ckpt_path=nothing.ckpt"]),
    "none of this run": Bad("best.ckpt, which does not exist", ["--ckpt_path=best"]),
    "no name": Bad("--ckpt_path is empty", ["--ckpt_path="]),
    "a folder": Bad("the folder .* has no optimizer", ["--ckpt_path={}/run"]),
    "nothing in it": Bad(r"empty\.ckpt, which is empty", ["--ckpt_path={}/empty.ckpt"]),
    "text": Bad("is not a file that torch.save wrote", ["--ckpt_path={}/text.ckpt"]),
    "a part": Bad(r"half\.ckpt, which is cut off", ["--ckpt_path={}/half.ckpt"]),
    "a part, of before 2020": Bad("which is cut off", ["--ckpt_path={}/half_old.ckpt"]),
    "no run": Bad("is not a checkpoint of a run", ["--ckpt_path={}/weights.ckpt"]),
    "a list": Bad("is not a checkpoint of a run", ["--ckpt_path={}/list.ckpt"]),
    "locked": Bad(
        r"locked\.ckpt cannot be read \(Resource temporarily unavailable\), though it may be whole",
        ["--ckpt_path={}/locked.ckpt"],
        around=locked,
    ),
    "of another shape": Bad(
        r"policy\.net\.0\.weight: .*\[64, 16\].*\[32, 16\]",
        ["--ckpt_path={}/run/checkpoints/last.ckpt", "--model.policy.hidden=32"],
        "built",
    ),
}
FILES = {
    "no demonstrations": Bad(
        "no file of demonstrations",
        [DEMONSTRATIONS, f"{CONTEXTS}.files=[{{}}/turn_0_demo.hdf5]"],
        "built",
    ),
    "a part of demonstrations": Bad(
        r"turn_90_demo\.hdf5 is damaged or no HDF5 file",
        [DEMONSTRATIONS, f"{CONTEXTS}.files=[{{}}/turn_90_demo.hdf5]"],
        "built",
    ),
    "demonstrations of another task": Bad(
        "not a task to use here",
        [DEMONSTRATIONS, f"{CONTEXTS}.files=[{{}}/fly_demo.hdf5]"],
        "built",
    ),
    "statistics that are cut off": Bad(
        r"dataset_statistics\.json is damaged or no JSON",
        [OPENVLA, "--model.policy.checkpoint={}/openvla", "--model.policy.statistics=libero_goal"],
        "built",
    ),
}
LIBEROS = {
    "an unknown suite": Bad(
        "unknown LIBERO suite 'libero_moon'", [*LIBERO, f"{ENVIRONMENT}.suite=libero_moon"], "built"
    ),
    "an unknown task": Bad("no task 'fly'", [*LIBERO, f"{ENVIRONMENT}.task_subset=[fly]"], "built"),
    "no such task": Bad("no task 10", [*LIBERO, f"{ENVIRONMENT}.task_subset=[10]"], "built"),
    "one task, no list": Bad(
        r"task_subset is 'milk', but must be a list", [*LIBERO, f"{ENVIRONMENT}.task_subset=milk"]
    ),
    "no pixels": Bad("image_size is 0", [*LIBERO, f"{ENVIRONMENT}.image_size=0"], "built"),
    "all tasks and no workers": Bad(  # null is null for a class within another, too
        "num_workers is 0, but must be 1 or more for LiberoSpec",
        [*LIBERO, f"{ENVIRONMENT}.task_subset", "null", "--data.num_workers=0"],
        "built",
    ),
    "no GL": Bad("libOSMesa is missing.*apt-get install libosmesa6", LIBERO, "built", no_gl),
    "no assets": Bad("the setting `assets`", [*LIBERO, f"{ENVIRONMENT}.assets=/nothing"], "built"),
    "objects that nobody registered": Bad(
        "has objects of the class 'moon_soup', which nobody registered",
        [*OWN_TASK, f"{ENVIRONMENT}.bddl=[{{}}/soup.bddl]"],
        "built",
    ),
    "no initial states": Bad(
        r"soup\.npz holds an array \(0, 110\)",
        [
            *OWN_TASK,
            f"{ENVIRONMENT}.bddl=[{{}}/soup.bddl]",
            f"{ENVIRONMENT}.init_states=[{{}}/soup.npz]",
        ],
        "built",
    ),
}
ALL = {
    f"{what}: {name}": case
    for what, cases in {
        "commands": COMMANDS,
        "settings": SETTINGS,
        "configs": CONFIGS,
        "places": PLACES,
        "checkpoints": CHECKPOINTS,
        "files": FILES,
        "LIBERO": LIBEROS,
    }.items()
    for name, case in cases.items()
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """A folder of files that something is wrong with, and of a run that all is well with."""
    folder = tmp_path_factory.mktemp("bad")
    contents = fit(folder / "run", 1)
    configs = {
        "tab": b"trainer:\n\tmax_epochs: 3\n",
        "open": b"trainer: [1, 2\nmodel: 3\n",
        "empty": b"# nothing yet\n",
        "list": b"- a\n- b\n",
        "binary": b"\xff\xfe\x00\x01",
        "key": b"trainer:\n  max_epoch: 1\n",
        "class": b"model:\n  init_args:\n    pases: 1\n",
    }
    for name, text in configs.items():
        (folder / f"{name}.yaml").write_bytes(text)
    (folder / "file").write_text("")
    whole = (folder / "run/checkpoints/last.ckpt").read_bytes()
    torch.save(contents, folder / "old.ckpt", _use_new_zipfile_serialization=False)
    old = (folder / "old.ckpt").read_bytes()
    checkpoints = {"empty": b"", "text": b"<html>", "half": whole[:3000], "locked": whole}
    for name, content in {**checkpoints, "half_old": old[: len(old) // 2]}.items():
        (folder / f"{name}.ckpt").write_bytes(content)
    torch.save(contents["state_dict"], folder / "weights.ckpt")
    torch.save([1, 2], folder / "list.ckpt")
    torch.save({**contents, "policy": {"kind": "pi0", "checkpoint": ""}}, folder / "flow.ckpt")
    with h5py.File(folder / "whole.hdf5", "w") as file:
        file["data/demo_0/states"] = np.zeros((5000, 3))
    part = (folder / "whole.hdf5").read_bytes()[:10_000]
    (folder / "turn_90_demo.hdf5").write_bytes(part)
    (folder / "fly_demo.hdf5").touch()
    (folder / "openvla").mkdir()
    (folder / "openvla/dataset_statistics.json").write_text('{"libero_goal": {"act')
    soup = bddl_path(suite_tasks("libero_object")[0]).read_text()
    (folder / "soup.bddl").write_text(soup.replace("- alphabet_soup", "- moon_soup"))
    np.savez(folder / "soup.npz", np.zeros((0, 110)))
    return folder


def contents_of(*folders):
    return {path: path.stat().st_mtime_ns for f in folders for path in f.rglob("*")}


@pytest.mark.parametrize("name", ALL)
def test_it_is_said_in_a_sentence(name, bad, tmp_path, capsys, monkeypatch):
    case = ALL[name]
    typed = [word.replace("{}", str(bad)) for word in case.typed]
    if typed[0].startswith("--"):
        typed = ["fit", *SHORT, f"--run_dir={tmp_path}", "--trainer.max_epochs=2", *typed]
    if case.around is not None:
        case.around(monkeypatch)
    costly = [
        (EnvironmentPool, "__init__"),
        (RolloutDataModule, "collect"),
        (ToyPolicy, "__init__"),
    ]
    for owner, method in costly[: {"parsed": 3, "built": 2, "begun": 0}[case.reached]]:
        monkeypatch.setattr(owner, method, lambda *_, **__: pytest.fail("It is late to say so."))
    before = contents_of(bad, tmp_path)
    line = refusal(capsys, *typed)
    assert re.search(case.said, line), line
    written = contents_of(bad, tmp_path).items() - before.items()
    settings = {"metrics", "version_0", "config.yaml"}  # a run records them as it begins
    settings |= {"status.json"} if case.reached == "begun" else set()
    assert case.reached != "parsed" or not written
    assert {path.name for path, _ in written if path != tmp_path} <= settings


def test_checkpoints_of_torchs_old_format_are_read(bad, tmp_path):
    """That torch wrote it before 2020 is no fault of a file."""
    assert fit(tmp_path, 2, f"--ckpt_path={bad}/old.ckpt")["epoch"] == 1


def test_a_run_without_checkpoints(tmp_path):
    assert fit(tmp_path, 1, "--trainer.enable_checkpointing=false") is None
    assert len(json.loads((tmp_path / "history.json").read_text())) == 1
