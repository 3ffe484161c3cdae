"""Runs of two processes through the command line, as a user's shell would start them."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def begin(arguments, **how):
    """Starts `lightning-ript` with these arguments, in a process group of its own.

    Args:
        arguments: Of the command.
        how: Otherwise, as `subprocess.Popen` has it.
    """
    usual = {"env": os.environ, "start_new_session": True}
    return subprocess.Popen(
        [sys.executable, "-m", "lightning_ript", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **{**usual, **how},
    )


def finish(process):
    """Waits for its success and returns what it said on stderr."""
    try:
        out, err = process.communicate(timeout=800)
    finally:
        with suppress(ProcessLookupError):  # a second rank that waits for the first
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, out + err
    return err


def strayed(theirs, alone):
    """How far gradients by name lie from those of one process, as a share of the whole gradient."""
    distance = sum((g - alone[n]).square().sum() for n, g in theirs.items()).sqrt()
    return distance / torch.stack([g.norm() for g in alone.values()]).norm()


def on_two(strategy):
    """Arguments for two processes."""
    return ["--trainer.devices=2", f"--trainer.strategy={strategy}"]
