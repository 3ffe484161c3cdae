"""Short runs of configs/toy.yaml through the command line."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from two_processes import begin

from lightning_ript.cli import main

SHORT = [
    "--config",
    "configs/toy.yaml",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.limit_val_batches=0",
    "--data.init_args.groups_per_iteration=6",
    "--model.init_args.passes=2",
    "--model.init_args.episodes_per_minibatch=16",
]
EVALUATED = ["--trainer.limit_val_batches=1.0", "--data.init_args.eval_states_per_task=4"]
SGD = ["--model.init_args.optimizer=torch.optim.SGD", "--model.init_args.optimizer.lr=0.5"]


def arguments(run_dir, iterations, *more, command="fit"):
    """What to give the command for a run of so many iterations."""
    return [command, *SHORT, f"--run_dir={run_dir}", f"--trainer.max_epochs={iterations}", *more]


def fit(run_dir, iterations, *more):
    """Runs in this process and returns the last checkpoint, if there is one."""
    main(arguments(run_dir, iterations, *more))
    return checkpoint(run_dir)


def start(run_dir, iterations, *more, command="fit"):
    """Runs as a user's shell would."""
    typed = arguments(run_dir, iterations, *more, command=command)
    return begin(typed, start_new_session=False)


def refusal(capsys, *typed):
    """Runs a command that has to be refused, and returns the one line that says why."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(list(typed))
    assert ended.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("lightning-ript: error: ")
    return lines[0]


def checkpoint(run_dir):
    path = Path(run_dir, "checkpoints", "last.ckpt")
    return torch.load(path, weights_only=False) if path.exists() else None


def history(run_dir):
    return json.loads(Path(run_dir, "history.json").read_text())


def contexts_taken(entries):
    """How many contexts these iterations of a history counted."""
    metrics = [entry["metrics"] for entry in entries]
    return int(sum(m["rollout/groups_kept"] + m["rollout/groups_dropped"] for m in metrics))


def interrupting(run_dir, entries, name):
    """What makes a run send itself a signal in the middle of an iteration.

    Args:
        run_dir: Of the run to interrupt.
        entries: A history up to the iteration in which the signal is to come, with it.
        name: The signal's name.
    """
    begun, ended = contexts_taken(entries[:-1]), contexts_taken(entries)
    arguments = {
        "history": Path(run_dir, "history.json"),
        "iterations": len(entries) - 1,
        "number": (begun + ended) // 2,
        "name": name,
        "flag": Path(run_dir, "sent"),
    }
    probe = "--data.init_args.contexts"
    return [
        f"{probe}=core_probe.InterruptingContexts",
        *(f"{probe}.{key}={value}" for key, value in arguments.items()),
    ]


def weights(run):
    """Those that are learned."""
    learned = ("policy.net", "critic.net")
    return {n: v for n, v in run["state_dict"].items() if n.startswith(learned)}


def assert_same_state(run, other):
    """Weights, optimizer, learning rate schedule and place in the stream, bit for bit."""
    for name, value in weights(run).items():
        assert torch.equal(value, weights(other)[name]), name
    (ours,), (theirs,) = run["optimizer_states"], other["optimizer_states"]
    assert ours["param_groups"] == theirs["param_groups"]
    for number, state in ours["state"].items():
        for name, value in state.items():
            assert torch.equal(value, theirs["state"][number][name]), name
    for name in ("epoch", "global_step", "lr_schedulers"):
        assert run[name] == other[name], name
    places = [each["RolloutDataModule"]["next_context"] for each in (run, other)]
    assert places[0] == places[1]


class SaveEveryRank(Callback):
    """Saves what each rank ends with."""

    def __init__(self, folder: str):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        run = {"state_dict": pl_module.state_dict()}
        torch.save(weights(run), Path(self.folder, f"rank{trainer.global_rank}.pt"))
