"""`~` and `$VARIABLES` in settings, odd names of folders, and lists of one."""

from argparse import Namespace
from pathlib import Path

import pytest
from toy_runs import SHORT, history

from lightning_ript.cli import main
from lightning_ript.commands.compare import read_arms
from lightning_ript.contexts import DemonstrationContexts
from lightning_ript.running.configs import find_config
from lightning_ript.running.paths import with_expanded_paths

ODD = "a=1 b%20"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    return tmp_path


@pytest.mark.parametrize(
    ("given", "then"),
    [
        ("~/a", "{home}/a"),
        ("$RUNS/b", "{home}/runs/b"),
        ("${RUNS}/c", "{home}/runs/c"),
        ("hf://owner/repo", "hf://owner/repo"),
        (".*proj$", ".*proj$"),
        ("pick~up", "pick~up"),
        (3, 3),
        (None, None),
    ],
)
def test_any_setting_may_be_a_path(home, given, then):
    then = then.format(home=home) if isinstance(then, str) else then
    settings = Namespace(one=given, more=[given, {"deep": Namespace(x=given)}], pair=(given, 1))
    found = with_expanded_paths(settings)
    assert found == Namespace(one=then, more=[then, {"deep": Namespace(x=then)}], pair=(then, 1))
    assert with_expanded_paths([Path("~/a")]) == [home / "a"]


def test_what_a_logger_is_told_stays_secret(home, monkeypatch):
    """But for its folder."""
    monkeypatch.setenv("KEY", "secret")
    logger = Namespace(init_args=Namespace(save_dir="~/logs", api_key="$KEY", notes="for $UNSET"))
    found = with_expanded_paths(Namespace(trainer=Namespace(logger=[logger])))
    (then,) = found.trainer.logger
    assert vars(then.init_args) == {
        "save_dir": f"{home}/logs",
        "api_key": "$KEY",
        "notes": "for $UNSET",
    }


def test_a_run_whose_names_are_odd(home, monkeypatch, capsys, tmp_path):
    """Every command that takes run directories, with one callback and one checkpoint."""
    config = home / "more.yaml"
    config.write_text("trainer:\n  callbacks: {class_path: lightning_ript.callbacks.RunReport}\n")
    assert find_config("~/more.yaml") == str(config)
    run = home / "runs" / ODD
    given = ["--config=~/more.yaml", f"--run_dir=$RUNS/{ODD}", "--data.eval_states_per_task=2"]
    for iterations in (1, 2):  # the second goes on
        main(["fit", *SHORT, *given, f"--trainer.max_epochs={iterations}"])
    assert [entry["iteration"] for entry in history(run)] == [1, 2]
    assert not Path("~").exists()
    assert not Path("$RUNS").exists()
    last = run / "checkpoints/last.ckpt"
    named = last.with_name("epoch=3-step=12.ckpt")
    named.write_bytes(last.read_bytes())
    checkpoint = f"~/runs/{ODD}/checkpoints/{named.name}"

    report = "lightning_ript.callbacks.EvaluationReport"
    quiet = [*SHORT[:-3], "--trainer.limit_val_batches=2", "--data.eval_states_per_task=2"]
    single = [f"--trainer.callbacks={report}", "--trainer.callbacks.name=before"]
    main(["validate", *quiet, f"--run_dir=~/runs/{ODD}", f"--ckpt_path={checkpoint}", *single])
    assert (run / "evaluation/before.json").is_file()
    main(["sweep", *quiet, f"--out=~/{ODD}/sweep", "--checkpoints", checkpoint])
    assert (home / ODD / "sweep/sweep.csv").is_file()

    main(["compare", f"$RUNS/{ODD}", f"an arm=~/runs/{ODD}", f"--out=~/{ODD}/compared"])
    assert "an arm" in (home / ODD / "compared/comparison.md").read_text()
    main(["report", f"~/runs/{ODD}", f"--out=~/{ODD}/page.html"])
    assert ODD in (home / ODD / "page.html").read_text()
    capsys.readouterr()
    main(["submit", "--dry-run", "fit", *SHORT, *given])
    assert f"{run}/submit.sbatch" in capsys.readouterr().out


def test_an_arm_whose_folder_is_missing_is_not_taken_for_a_name(home):
    with pytest.raises(FileNotFoundError, match=r"There is no .*/a=1/history\.json"):
        read_arms([str(home / "a=1")])


def test_one_file_is_a_list_of_one():
    assert (
        DemonstrationContexts("one.hdf5").files == DemonstrationContexts([Path("one.hdf5")]).files
    )
    with pytest.raises(ValueError, match="files is empty"):
        DemonstrationContexts([])
