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
from lightning_ript.console.described import described
from lightning_ript.running.configs import find_config, with_config_paths
from lightning_ript.running.paths import expanded
from lightning_ript.storage.files import replacing

LIGHTNING = ("fit", "validate")
USAGE = "lightning-ript submit [OPTIONS] fit --config FILE ..."
RESTARTS = 20  # after so many, a job whose processes are killed has failed
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
        ValueError: There is no command, or something is wrong with it.
        SystemExit: sbatch refuses the job.
    """
    from lightning_ript.commands import COMMANDS

    place = _place(arguments, {*LIGHTNING, *COMMANDS} - {"submit"})
    parser = CommandParser(prog="lightning-ript submit", usage=USAGE, description=described(submit))
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
        ValueError: No argument has the name that `over` gives values to, or the job would not go
            on from its own checkpoints.
        SystemExit: A setting is wrong; it has been said.
    """
    name, values = job.values
    if values and not any(f"{{{name}}}" in argument for argument in command):
        raise ValueError(f"over names {name}, but {{{name}}} is nowhere in the command.")
    if command[0] not in LIGHTNING:
        return
    from lightning_ript.cli import RIPTCLI, run_lightning

    for value in values or [""]:
        filled = [a.replace(f"{{{name}}}", value) if name else a for a in command]
        filled = with_config_paths(filled)
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                run_lightning(RIPTCLI, [*filled, "--print_config"])
        except SystemExit as ended:
            if ended.code:
                raise
        found = yaml.safe_load(printed.getvalue())
        if command[0] == "fit" and found.get("ckpt_path"):
            raise ValueError(
                f"ckpt_path is {found['ckpt_path']}, from which the job would start again whenever "
                "it is requeued: leave it out, and the job goes on from the run's own checkpoint."
            )


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
            path = find_config(value)
            content = yaml.safe_load(Path(path).read_text()) if os.path.isfile(path) else None
            found = content.get("run_dir", found) if isinstance(content, dict) else found
    found = expanded(found)
    return Path(found.partition("{")[0].rpartition("/")[0] or "." if "{" in found else found)


def batch_script(command: Sequence[str], job: Job, folder: Path) -> str:
    """The script, which can also be submitted by hand."""
    name, values = job.values
    output = str(folder.resolve()).replace("%", "%%")
    tasks = max(1, job.gpus_per_node) if command[0] in (*LIGHTNING, "sweep") else 1
    options = [
        f"--job-name={re.sub(r'[^A-Za-z0-9_.-]', '_', folder.name) or 'lightning-ript'}",
        f"--nodes={job.nodes}",
        f"--ntasks-per-node={tasks}",
        *([f"--gpus-per-node={job.gpus_per_node}"] if job.gpus_per_node else []),
        f"--cpus-per-task={job.cpus_per_task}",
        f"--time={job.time}",
        *([f"--partition={job.partition}"] if job.partition else []),
        *([f"--account={job.account}"] if job.account else []),
        *([f"--array=0-{len(values) - 1}"] if values else []),
        f'--output="{output}/{LOGS.format("%A_%a" if values else "%j")}"',
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
        "again() { echo 'queueing again'; scontrol requeue \"$SLURM_JOB_ID\"; }",
        "told=",
        "trap 'told=yes; again' USR1  # the time is nearly over: the run goes on later",
        "trap 'told=yes' TERM  # cancelled, or the nodes are needed by others",
        "",
        "# In the background: bash runs a trap only between commands or while it waits.",
        f"srun --kill-on-bad-exit=1 {_typed(command, job, name)} &",
        "status=0",
        "wait $! || status=$?",
        'if [ -n "$told" ]; then',
        "  wait || true",
        "  # Still running: neither cancelled nor queued again by SLURM.",
        '  if scontrol show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING; then again; fi',
        '  exit "$status"',
        "fi",
        "# A process was killed, or its node lost; 143 is srun ending the others after an error.",
        'if [ "$status" -gt 128 ] && [ "$status" -ne 143 ] \\',
        f'  && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {RESTARTS} ]; then',
        "  again",
        "fi",
        'exit "$status"',
    ]
    return "\n".join(lines) + "\n"


def _place(arguments: Sequence[str], known: set[str]) -> int | None:
    """Where the command begins: the first argument of a known name that is no option's value."""
    is_value = False
    for place, argument in enumerate(arguments):
        if not is_value and argument in known:
            return place
        is_option = argument.startswith("--") and "=" not in argument
        is_value = is_option and _hyphens(argument) == _hyphens(argument).partition("=")[0]
    return None


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
