"""The benchmarks run and say what they promise; how fast anything is, is not tested."""

import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from slow_cases import first_and_slow

from lightning_ript.envs.libero.standins import build_standins

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script, output, *arguments):
    command = [sys.executable, BENCHMARKS / script, f"--json={output}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text()), done.stdout


def all_positive(values):
    return all(math.isfinite(value) and value > 0 for value in values)


@pytest.mark.parametrize("padding", ["minibatch", "collection"])
def test_both_schedules_take_the_same_steps(tmp_path, padding):
    size = ["--sizes=small", "--groups=2", "--max_decisions=12", "--rounds=1"]
    found, printed = run("ppo_update.py", tmp_path / "ppo.json", *size, f"--padding={padding}")
    assert found["gradient_difference"] <= 1e-5 < found["largest_gradient"]
    assert all_positive(found["ratio"].values())
    computed = {name: each["computed_decisions"] for name, each in found["schedules"].items()}
    assert computed["ours"] == found["settings"]["decisions"] < computed["reference"]
    for each in found["schedules"].values():
        assert all_positive([*each["decisions_per_second"].values(), each["peak_memory_mib"]])
    assert "decision steps/s" in printed


@pytest.mark.parametrize("size", first_and_slow(["small", "full"]))
def test_openvla_oft_has_the_published_sizes(tmp_path, size):
    pytest.importorskip("timm")
    few = ["--batch_sizes=[2]", "--microbatches=[1,2]", "--rounds=1", "--device=cpu"]
    output = tmp_path / "openvla_oft.json"
    found, printed = run("openvla_oft.py", output, f"--size={size}", *few)
    parts = found["parameters"]
    assert parts["base"] == found["published_base"] == 7_541_237_184
    encoders = parts["vision_dinov2"] + parts["vision_siglip"]
    assert encoders + parts["projector"] + parts["language_model"] == parts["base"]
    assert found["settings"]["size"] == "small"  # there is no GPU for the other
    assert ("There is no GPU" in printed) == (size == "full")
    for each in (*found["acting"].values(), *found["learning"].values()):
        assert all_positive([*each["decisions_per_second"].values(), each["peak_memory_mib"]])


@pytest.mark.parametrize("storage", first_and_slow(["contiguous", "gzip", "sparse"]))
def test_the_loader_of_demonstrations(tmp_path, storage):
    size = ["--tasks=2", "--demonstrations=2", "--image_size=16", "--batch_size=8"]
    output = tmp_path / "demonstrations.json"
    run_ = ["demonstrations.py", output, *size, "--workers=1", "--seconds=0.5"]
    found, printed = run(*run_, f"--storage={storage}")
    assert 100 <= found["steps"] / 2 <= 200  # one demonstration of each file is held out
    memory = found["peak_memory_mib"]
    assert len(memory["workers"]) == 1
    assert all_positive([found["steps_per_second"], memory["main"], *memory["workers"]])
    assert "steps/s" in printed


@pytest.mark.libero
def test_all_variants_run_the_same_episode(tmp_path):
    assets = build_standins(tmp_path)
    size = ["--workers=1", "--episodes=1", "--rounds=1", "--max_steps=16"]
    staged = ["--success=1", "--success_at=12"]
    output = tmp_path / "rollouts.json"
    found, printed = run("rollouts.py", output, f"--assets={assets}", *size, *staged)
    variants = found["variants"]
    assert list(variants) == ["a_reference", "b_kept", "c_exact", "d_fast", "e_fast_light"]
    for name, each in variants.items():
        assert name in printed
        assert (each["episodes"], each["successes"], each["control_steps"]) == (1, 1, 12)
        parts = each["ms_per_control_step"]
        assert all_positive(parts.values()), parts
        assert all_positive(each["episodes_per_hour"].values())
        assert all_positive(each["steps_per_second_per_core"].values())
        assert each["memory_mib"] > 100
        for base in ("a_reference", "b_kept"):
            assert all_positive(each["ratio_to"][base].values())
    for mode in ("exact", "fast"):
        assert all_positive(found["control_step"][mode].values())


@pytest.mark.slow
@pytest.mark.libero
def test_scaling_says_what_bounds_it(tmp_path):
    assets = build_standins(tmp_path)
    size = ["--scaling=[1]", "--variants=[e_fast_light]", "--episodes=1", "--rounds=1"]
    output = tmp_path / "scaling.json"
    found, _ = run("rollouts.py", output, f"--assets={assets}", *size, "--max_steps=16")
    (each,) = found["scaling"]["e_fast_light"].values()
    assert (each["episodes"], each["successes"], each["control_steps"]) == (1, 0, 16)
    assert each["bound"]


@pytest.mark.libero
def test_many_tasks_run_together_and_one_by_one(tmp_path):
    assets = build_standins(tmp_path)
    size = ["--tasks=[1,3]", "--workers=1", "--rollouts_per_context=1", "--max_steps=8"]
    output = tmp_path / "many_tasks.json"
    arguments = [f"--assets={assets}", *size, "--render=light", "--reference=false"]
    found, printed = run("rollouts.py", output, *arguments)
    assert list(found["many_tasks"]) == ["1", "3"]
    for count, each in found["many_tasks"].items():
        assert each["scenes"] == int(count)  # in LIBERO-Object every task has its own
        assert each["one_by_one"]["episodes"] == each["together"]["episodes"] == 10
        assert all_positive([each["ratio"], *each["together"].values()])
    assert "episodes/h" in printed


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--tasks=[11]", "--workers=1"], "tasks is 11, but the suite has 1 to 10 of them"),
        (["--episodes=3"], "multiple of the number of workers"),
        (["--variants=[fastest]"], "no variant 'fastest'"),
        (["--success=2"], "from 0 to 1"),
    ],
)
def test_wrong_settings_are_refused(arguments, reason):
    with pytest.raises((SystemExit, ValueError), match=reason):
        script("rollouts.py", *arguments)


def script(name, *arguments):
    """Runs a script in this process: to start another would take longer than what it does."""
    path = BENCHMARKS / name
    with (
        patch.object(sys, "argv", [str(path), *arguments]),
        patch.object(sys, "path", [str(BENCHMARKS), *sys.path]),
        patch.dict(os.environ),
        patch("multiprocessing.set_start_method"),  # which can be said once in a process
    ):
        runpy.run_path(str(path), run_name="__main__")


def numbers(table):
    """The first number of each row."""
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    return {row[0].strip(): float(row[1]) for row in rows[2:]}


def test_memory_is_computed(capsys):
    ways = {
        "expert": [],
        "everything": ["--train=everything", "--precision=float32"],
        "lora": ["--lora=4"],
        "sharded": ["--gpus=4", "--strategy=fsdp2"],
    }
    found = {}
    for way, more in ways.items():
        script("memory.py", "--decisions=[1]", "--environments=1", *more)
        found[way] = numbers(capsys.readouterr().out)
    for each in found.values():
        total = each.pop("learning, in all")
        assert abs(sum(each.values()) - total) < 0.1
        assert abs(each["optimizer"] - 2 * each["gradients"]) < 0.1 or each is found["sharded"]
    # 400 M parameters without the head for words, of which 300 M can be of half precision.
    assert 0.9 < found["expert"]["weights"] < 1.0
    assert 1.4 < found["everything"]["weights"] < 1.6
    assert found["lora"]["gradients"] < 0.1 < found["expert"]["gradients"]
    assert found["sharded"]["weights"] < 0.3 * found["expert"]["weights"]


@pytest.mark.slow
def test_kills_change_nothing(tmp_path, capsys):
    script("kills.py", "--kills=4", f"--out={tmp_path}")
    assert "bit for bit" in capsys.readouterr().out
    assert (tmp_path / "killed" / "history.json").is_file()


@pytest.mark.slow
def test_the_check_of_a_gpu_runs_on_a_cpu(tmp_path):
    found, printed = run("gpu_check.py", tmp_path / "gpu.json", "--device=cpu", "--rounds=1")
    wrong = [each["what"] for each in found if each["fine"] is False]
    assert not wrong
    names = " ".join(each["what"] for each in found)
    for part in ("machine", "smolvla", "openvla_oft", "pictures", "QueST, learning", "two ranks"):
        assert part in names, part
    assert "Without a GPU: small sizes" in printed


def test_fitted_values_make_a_gradient_less_noisy(capsys):
    script("gradient_variance.py", "[--config=configs/toy.yaml]")
    printed = capsys.readouterr().out
    found = numbers(printed[printed.index("| decisions judged by") :])
    leave_one_out, *fitted = found.values()
    assert leave_one_out == 1
    # Less as values are trusted more.
    assert [0.9, *fitted] == sorted([0.9, *fitted], reverse=True)
    assert min(fitted) > 0


def test_gain_of_two_gradients():
    """Their product is 1, or -1 where signs are random, and their mean has length sqrt 2."""
    with patch.object(sys, "path", [str(BENCHMARKS), *sys.path]):
        gain = runpy.run_path(str(BENCHMARKS / "gradient_variance.py"))["gain"]
    gradients = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
    assert gain(gradients, gradients) == "0.7 ± 0.7"
