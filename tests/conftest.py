"""What all tests share."""

import os
import signal
from pathlib import Path

# A thread per process: the tests start several processes at once, and results must not depend on
# how many cores a machine has.
os.environ["OMP_NUM_THREADS"] = "1"
# Simulator workers and subprocesses import the probes that lie beside the tests.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)

import pytest
import torch

from lightning_ript.types import Context, Rollout, RolloutGroup, Task

torch.set_num_threads(1)
# A shell that starts the tests in the background has them ignore it, and so would what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _from_the_root():
    """Commands in tests name files as a user in the repository's root does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parents[1])
        patch.setattr("sys.argv", ["lightning-ript"])  # not pytest's
        yield


@pytest.fixture(autouse=True, scope="session")
def _without_pages():
    """A page takes a second, a run of the toy half of one; tests of pages put `write_page` back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_ript.callbacks.run_report.write_page", lambda *_: None)
        yield


@pytest.fixture
def make_group():
    """Builds a group of context `number` from its rewards and the decisions of each episode.

    A decision's record is its own number, so that a test can tell which ones it meets.
    """

    def make(number, rewards, decisions, tokens=2):
        context = Context(Task("toy", 0, "turn_0", "go"), number)
        rollouts = []
        for k, (reward, length) in enumerate(zip(rewards, decisions, strict=True)):
            first = number * 1000 + k * 100
            record = {"id": torch.arange(first, first + length)}
            generator = torch.Generator().manual_seed(first)
            log_probs = -torch.rand(length, tokens, generator=generator)
            rollouts.append(Rollout(context, k, bool(reward), length, record, log_probs))
        return RolloutGroup(context, tuple(rollouts))

    return make
