"""Hands a command to SLURM: `lightning-ript submit [OPTIONS] fit --config ...`."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from lightning_ript.commands.errors import CommandParser
from lightning_ript.storage.files import replacing

LIGHTNING = ("fit", "validate")
USAGE = "lightning-ript submit [OPTIONS] fit --config FILE ..."
SCRIPT, LOGS = "submit.sbatch", "slurm-{}.out"


@dataclass(frozen=True)
class Job:
    """What SLURM is asked for.

    Attributes:
        nodes: Machines.
        gpus_per_node: GPUs, and processes, of each.
        cpus_per_task: Cores of each process; its simulators share them.
        time: Limit, as `sbatch --time` takes it. A job that reaches it is queued again and goes on.
        partition: Where to; the cluster's default.
        account: Who pays; the cluster's default.
        sbatch: Further options of sbatch, e.g. `["--constraint=a100"]`.
        over: `NAME=VALUE,VALUE,...`: a job of an array for each value, which takes the place of
            `{NAME}` in the command.
        dry_run: Write and show the script, and submit nothing.
    """

    nodes: int = 1
    gpus_per_node: int = 1
    cpus_per_task: int = 16
    time: str = "24:00:00"
    partition: str | None = None
    account: str | None = None
    sbatch: tuple[str, ...] = ()
    over: str | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        if min(self.nodes, self.cpus_per_task) < 1 or self.gpus_per_node < 0:
            raise ValueError(
                f"nodes is {self.nodes}, cpus_per_task {self.cpus_per_task} and gpus_per_node "
                f"{self.gpus_per_node}: set them to 1 or more, and GPUs to 0 or more."
            )
        if self.over is not None and not re.fullmatch(r"\w+=[^,]+(,[^,]+)*", self.over):
            raise ValueError(f"over is {self.over!r}: write NAME=VALUE,VALUE, e.g. seed=0,1,2.")

    @property
    def values(self) -> tuple[str, list[str]]:
        """The name in the command and what takes its place, one after the other."""
        name, _, values = (self.over or "").partition("=")
        return name, values.split(",") if values else []


def submit(arguments: list[str]) -> None:
    """Writes the batch script and submits it.

    Args:
        arguments: Options, then the command.

    Raises:
        FileNotFoundError: There is no sbatch.
        ValueError: The command is none, or wrong.
        SystemExit: sbatch refuses the job.
    """
    from lightning_ript.commands import COMMANDS

    known = {*LIGHTNING, *COMMANDS} - {"submit"}
    place = next((i for i, argument in enumerate(arguments) if argument in known), None)
    parser = CommandParser(prog="lightning-ript submit", usage=USAGE, description=submit.__doc__)
    parser.add_class_arguments(Job, as_group=False)
    settings = parser.parse_args([_hyphens(each) for each in arguments[:place]])
    job = parser.instantiate_classes(settings)
    job = Job(**{**vars(job), "sbatch": tuple(job.sbatch)})
    if place is None:
        raise ValueError(f"There is no command to submit: {USAGE}")
    command = arguments[place:]
    check(command, job)
    folder = run_folder(command)
    script = folder / SCRIPT
    with replacing(script) as draft:
        draft.write_text(batch_script(command, job, folder))
        draft.chmod(0o755)
    if job.dry_run:
        sys.stdout.write(f"{script}:\n\n{script.read_text()}")
        return
    if shutil.which("sbatch") is None:
        raise FileNotFoundError(
            f"There is no sbatch on this machine: submit from a login node. The job is in {script}."
        )
    asked = subprocess.run(
        ["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        raise SystemExit(f"sbatch refuses {script}: {asked.stderr.strip()}")
    number = asked.stdout.strip().split(";")[0]
    logs = folder / LOGS.format(f"{number}_*" if job.over else number)
    sys.stdout.write(f"Job {number} is queued; its output goes to {logs}.\n")


def check(command: Sequence[str], job: Job) -> None:
    """Refuses here what the job would refuse after its time in the queue.

    Raises:
        ValueError: Nothing in the command takes a value, or a name in it takes none.
        SystemExit: A setting is wrong; it has been said.
    """
    name, values = job.values
    if values and not any(f"{{{name}}}" in argument for argument in command):
        raise ValueError(f"over names {name}, but {{{name}}} is nowhere in the command.")
    if command[0] not in LIGHTNING:
        return
    from lightning_ript.cli import RIPTCLI, run_lightning

    for value in values or [""]:
        filled = [argument.replace(f"{{{name}}}", value) for argument in command]
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                run_lightning(RIPTCLI, [*filled, "--print_config"])
        except SystemExit as ended:
            if ended.code:
                raise


def run_folder(command: Sequence[str]) -> Path:
    """The run directory that a command names, in itself or in its configs; the last one counts.

    Of a directory that has the name of a value in it, the part before that.
    """
    found = "runs/default"
    for here, then in zip(command, [*command[1:], ""], strict=True):
        name, equals, value = here.partition("=")
        value = value if equals else then
        if name == "--run_dir":
            found = value
        elif name in ("--config", "-c"):
            content = yaml.safe_load(Path(value).read_text()) if Path(value).is_file() else None
            found = (content or {}).get("run_dir", found)
    found = os.path.expandvars(os.path.expanduser(found))
    return Path(found.partition("{")[0].rpartition("/")[0] or "." if "{" in found else found)


def batch_script(command: Sequence[str], job: Job, folder: Path) -> str:
    """The script, which can also be submitted by hand."""
    name, values = job.values
    options = [
        f"--job-name={folder.name or 'lightning-ript'}",
        f"--nodes={job.nodes}",
        f"--ntasks-per-node={max(1, job.gpus_per_node)}",
        *([f"--gpus-per-node={job.gpus_per_node}"] if job.gpus_per_node else []),
        f"--cpus-per-task={job.cpus_per_task}",
        f"--time={job.time}",
        *([f"--partition={job.partition}"] if job.partition else []),
        *([f"--account={job.account}"] if job.account else []),
        *([f"--array=0-{len(values) - 1}"] if values else []),
        f"--output={folder.resolve() / LOGS.format('%A_%a' if values else '%j')}",
        "--open-mode=append",
        "--requeue",
        "--signal=B:USR1@120",
        *job.sbatch,
    ]
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in options), "set -euo pipefail", ""]
    if values:
        quoted = " ".join(map(shlex.quote, values))
        lines += [f"values=({quoted})", 'value="${values[$SLURM_ARRAY_TASK_ID]}"', ""]
    lines += [
        f"cd {shlex.quote(os.getcwd())}",
        "# Since SLURM 22.05 srun does not take it over from sbatch.",
        f"export SRUN_CPUS_PER_TASK={job.cpus_per_task}",
        "# Before the time is over, and when others need the machines: the run goes on later.",
        "again() { echo 'queueing again'; scontrol requeue \"$SLURM_JOB_ID\"; }",
        "trap again USR1 TERM",
        "",
        "# In the background: bash runs a trap only between commands or while it waits.",
        f"srun {_typed(command, job, name)} &",
        "wait $!",
    ]
    return "\n".join(lines) + "\n"


def _typed(command: Sequence[str], job: Job, name: str) -> str:
    """The command as bash reads it."""
    words = [sys.executable, "-m", "lightning_ript", command[0]]
    if command[0] in LIGHTNING and job.gpus_per_node:
        words += ["--trainer.strategy", "ddp"]  # a config may name another one
    words += command[1:]
    if command[0] in LIGHTNING:
        words += ["--trainer.devices", str(max(1, job.gpus_per_node))]
        words += ["--trainer.num_nodes", str(job.nodes)]
        if job.gpus_per_node:
            words += ["--trainer.accelerator", "gpu"]
    quoted = [shlex.quote(word) for word in words]
    if not name:
        return " ".join(quoted)
    # What is left out of the single quotes is bash's to fill in.
    return " ".join(word.replace(f"{{{name}}}", "'\"$value\"'") for word in quoted)


def _hyphens(argument: str) -> str:
    """`--gpus-per-node`, as SLURM writes it, for `--gpus_per_node`; `--dry-run` for true."""
    name, equals, value = argument.partition("=")
    if name == "--dry-run":
        return f"--dry_run={value or 'true'}"
    return (
        name.replace("-", "_").replace("__", "--", 1) + equals + value
        if (name.startswith("--"))
        else argument
    )
