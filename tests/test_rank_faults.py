"""A rank that ends takes the others with it, in a sentence; and one that is slow does not."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from fault_probe import fault
from slow_cases import first_and_slow
from toy_runs import EVALUATED, arguments, history
from two_processes import ROOT, begin

# How a rank ends -> what the other says of it.
CASES = {
    ("collecting", "SIGKILL", 1): "has died without a word. It was killed, as the kernel does",
    (
        "collecting",
        "raise",
        0,
    ): "has ended: The elbow names ../hand, which is not below arm. (ValueError)",
    ("learning", "SIGKILL", 0): "has died without a word. It was killed, as the kernel does",
    ("evaluating", "SIGTERM", 1): "has ended: it was stopped by SIGTERM.",
}


def two_ranks(run_dir, iterations, *more):
    """Two processes as a scheduler would start them; each has its own output."""
    typed = arguments(run_dir, iterations, *EVALUATED, "--trainer.devices=2", *more)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
    return [
        begin(typed, env={**os.environ, **shared, "LOCAL_RANK": str(rank)}) for rank in range(2)
    ]


def outcomes(processes):
    """Exit status and what was said, of each."""
    try:
        said = [process.communicate(timeout=800) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, out + err) for p, (out, err) in zip(processes, said, strict=True)]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A run for each case, all at once."""
    ddp = "--trainer.strategy=ddp"
    runs = {}
    for when, how, rank in CASES:
        run_dir = tmp_path_factory.mktemp(f"{when}_{how}")
        runs[when, how, rank] = (
            run_dir,
            two_ranks(run_dir, 3, ddp, *fault(run_dir, how, when, rank)),
        )
    return {case: (run_dir, outcomes(processes)) for case, (run_dir, processes) in runs.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_the_other_rank_says_which_and_why(ended, case):
    _, how, rank = case
    run_dir, found = ended[case]
    assert (run_dir / "happened").exists(), found
    (code, said), (other_code, other_said) = found[rank], found[1 - rank]
    expected = {"SIGKILL": -signal.SIGKILL, "raise": 2, "SIGTERM": 1}[how]
    assert code == expected, said
    assert other_code not in (0, None), other_said
    assert f"Rank {rank} (process " in other_said, other_said
    assert CASES[case] in other_said, other_said
    for words in ("Traceback", "Connection closed"):
        assert words not in other_said, other_said
    assert len(history(run_dir)) in (1, 2)


def test_the_same_command_goes_on(ended):
    run_dir, _ = ended["collecting", "SIGKILL", 1]
    again = fault(run_dir, "SIGKILL", "collecting", 1)
    found = outcomes(two_ranks(run_dir, 3, "--trainer.strategy=ddp", *again))
    assert [code for code, _ in found] == [0, 0], found
    assert "groups of this iteration had been finished before" in found[0][1]
    assert [entry["iteration"] for entry in history(run_dir)] == [1, 2, 3]
    assert not (run_dir / ".ranks").exists()


@pytest.mark.parametrize("how", first_and_slow(["raise", None]))
def test_torchrun(tmp_path, how):
    more = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    more += fault(tmp_path, how, "learning", 1) if how else []
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *("-m", "lightning_ript", *arguments(tmp_path, 2, *EVALUATED, *more)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    said = done.stdout + done.stderr
    assert (done.returncode == 0) == (how is None), said
    assert len(history(tmp_path)) == (1 if how else 2)
    assert not how or "lightning-ript: error: The elbow names ../hand" in said


@pytest.mark.parametrize("when", first_and_slow(["collecting", "evaluating"]))
def test_a_slow_rank_is_waited_for(tmp_path, when):
    """No collective is open while episodes run: its time-out is half of what this rank sleeps."""
    strategy = "lightning.pytorch.strategies.DDPStrategy"
    short = [f"--trainer.strategy={strategy}", "--trainer.strategy.timeout=0:00:02"]
    since = time.monotonic()
    processes = two_ranks(tmp_path, 2, *short, *fault(tmp_path, "sleep", when, 1))
    for code, said in outcomes(processes):
        assert code == 0, said
    assert time.monotonic() - since > 4
    assert len(history(tmp_path)) == 2
