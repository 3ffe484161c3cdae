"""`lightning-ript compare`: which runs make an arm, table, curves and refusals."""

import csv
import json

import pytest

from lightning_ript.cli import main
from lightning_ript.commands.compare import compare, read_arms, summarize
from lightning_ript.reports.compare_chart import Curve, draw_curves
from lightning_ript.storage.evaluation_result import EvaluationResult, TaskResult, wilson_interval
from lightning_ript.storage.run_directory import evaluation_path


def evaluation(successes, episodes=50, task="lift", standin=False, sampled=True):
    metadata = {"environment": {"standin_assets": standin}, "sampled_actions": sampled}
    return EvaluationResult((TaskResult(task, "", episodes, successes, 80.0),), metadata)


def write_run(folder, successes, before=None, iterations=4, **how):
    """A run of so many iterations, a minute each; `successes` by iteration."""
    entries = []
    for i in range(1, iterations + 1):
        result = None
        if i in successes:
            result = evaluation(successes[i], **how)
            result.write(evaluation_path(folder, f"epoch={i - 1:03d}"))
        entries.append(
            {
                "iteration": i,
                "seconds": 60.0 * i,
                "metrics": {"rollout/success_rate": 0.1 * i},
                "evaluation": None if result is None else result._replace(metadata={}).to_dict(),
            }
        )
    if before is not None:
        evaluation(before, **how).write(evaluation_path(folder, "before"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "history.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture
def study(tmp_path):
    """Two seeds of one arm, a single run of the other."""
    write_run(tmp_path / "loo/seed0", {2: 30, 4: 40}, before=20)
    write_run(tmp_path / "loo/seed1", {2: 45, 4: 30}, before=10)
    write_run(tmp_path / "critic", {2: 25, 4: 50})
    return tmp_path


def test_the_table(study, capsys):
    out = study / "out"
    main(["compare", str(study / "loo"), str(study / "critic"), f"--out={out}"])
    text = (out / "comparison.md").read_text()
    # loo: 40 % and 20 % before; 80 % and 60 % at last, 70 of 100; best 75 % after 2 iterations.
    low, high = wilson_interval(70, 100)
    assert text == "\n".join(
        [
            "| arm | runs | iterations | before | last | 95 % interval "
            "| best (iteration) | minutes |",
            "|---|---|---|---|---|---|---|---|",
            f"| loo | 2 | 4 | 30.0% | 70.0% ± 14.1% | {low:.1%} - {high:.1%} | 75.0% (2) | 4.0 |",
            "| critic | 1 | 4 | - | 100.0% | 92.9% - 100.0% | 100.0% (4) | 4.0 |",
            "",
        ]
    )
    assert text in capsys.readouterr().out
    with (out / "comparison.csv").open() as file:
        loo, critic = csv.DictReader(file)
    assert (loo["last"], loo["episodes"]) == ("0.7", "100")
    assert float(loo["last_std"]) == pytest.approx(0.2 / 2**0.5)
    assert (critic["before"], critic["last_std"], critic["best_iteration"]) == ("", "", "4")
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_the_curves_are_a_tidy_table(study):
    compare([str(study / "loo"), str(study / "critic")], str(study / "out"))
    with (study / "out/curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    mine = [row for row in rows if row["run"].endswith("loo/seed1")]
    assert {row["arm"] for row in mine} == {"loo"}
    # Rollouts of iteration n are the policy's that has learned n - 1 times.
    assert [
        (row["iteration"], row["successes"], row["success_rate"], row["rollout_success_rate"][:3])
        for row in mine
    ] == [
        ("0", "10", "0.2", "0.1"),
        ("1", "", "", "0.2"),
        ("2", "45", "0.9", "0.3"),
        ("3", "", "", "0.4"),
        ("4", "30", "0.6", ""),
    ]


def test_the_chart_has_a_curve_per_arm_and_a_thin_one_per_seed(study):
    arms = read_arms([str(study / "loo"), str(study / "critic")])
    tests = [Curve(arm.name, [run.tests() for run in arm.runs]) for arm in arms]
    rollouts = [Curve(arm.name, [run.rollouts() for run in arm.runs]) for arm in arms]
    figure = draw_curves(tests, rollouts)
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("test states", "training rollouts")
    seed0, seed1, loo, critic = left.get_lines()
    assert list(loo.get_xdata()) == [0, 2, 4]
    assert list(loo.get_ydata()) == pytest.approx([0.3, 0.75, 0.7])
    assert list(seed0.get_ydata()) == [0.4, 0.6, 0.8]
    assert list(seed1.get_ydata()) == [0.2, 0.9, 0.6]
    assert list(critic.get_xdata()) == [2, 4]
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["loo (mean of 2 runs)", "critic"]
    assert legend.get_title().get_text() == (
        "bands: lowest to highest of several runs; 95 % interval of a single run's evaluation"
    )


def test_bands():
    several = Curve("x", [{0: 0.2, 1: 0.5}, {0: 0.6}])
    assert several.means() == {0: pytest.approx(0.4)}
    assert several.band() == {0: (0.2, 0.6)}
    single = Curve("x", [{3: TaskResult("", "", 50, 20, 1.0)}])
    assert single.band() == {3: wilson_interval(20, 50)}
    assert Curve("x", [{3: 0.5}]).band() == {}


def test_runs_that_were_never_evaluated_show_their_rollouts(tmp_path):
    write_run(tmp_path / "a", {})
    arms = read_arms([str(tmp_path / "a")])
    row = summarize(arms[0])
    assert (row["last"], row["best"], row["interval_low"]) == (None, None, None)
    figure = draw_curves([Curve("a", [arms[0].runs[0].tests()])], [Curve("a", [{0: 0.1, 1: 0.3}])])
    (axes,) = figure.axes
    assert axes.get_title() == "training rollouts"
    compare([str(tmp_path / "a")], str(tmp_path / "out"))
    assert "| a | 1 | 4 | - | - | - | - | 4.0 |" in (tmp_path / "out/comparison.md").read_text()


def test_arms_are_named_by_what_tells_them_apart(study):
    seeds = [str(study / f"loo/seed{i}") for i in (0, 1)]
    assert [arm.name for arm in read_arms(seeds)] == ["seed0", "seed1"]
    (arm,) = read_arms(["both=" + ",".join(seeds)])
    assert (arm.name, len(arm.runs)) == ("both", 2)
    write_run(study / "lr=0.1", {4: 1})
    assert read_arms([str(study / "lr=0.1")])[0].name == "lr=0.1"
    with pytest.raises(ValueError, match="An arm is named twice"):
        read_arms([str(study / "critic"), str(study / "critic")])
    with pytest.raises(ValueError, match=r"Two arms have the same name \(seed1, seed1\)"):
        read_arms([seeds[1], f"seed1={seeds[0]}"])


def test_what_is_missing_or_broken(study, capsys):
    with pytest.raises(FileNotFoundError, match=r"There is no .*nothing/history\.json"):
        compare([str(study / "nothing")], str(study / "out"))
    broken = {"{": "is not a history", "[{}]": "is not a history", "[]": "has no iteration"}
    for text, said in broken.items():
        (study / "critic/history.json").write_text(text)
        with pytest.raises(ValueError, match=said):
            compare([str(study / "critic")], str(study / "out"))
    assert not (study / "out").exists()
    with pytest.raises(SystemExit):
        main(["compare", str(study / "loo")])
    assert "--out is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"episodes": 40}, r"tasks or episodes: {'lift': 50} against {'lift': 40}"),
        ({"task": "push"}, "tasks or episodes"),
        ({"standin": True}, r"caveats: \(\) against \('Stand-in assets"),
        ({"sampled": False}, "sampled actions: True against False"),
    ],
)
def test_runs_that_were_evaluated_differently_are_not_compared(study, how, said):
    write_run(study / "other", {4: 20}, **how)
    with pytest.raises(ValueError, match=said):
        compare([str(study / "loo"), str(study / "other")], str(study / "out"))
    assert not (study / "out").exists()


def test_standins_are_admitted(tmp_path):
    write_run(tmp_path / "a", {4: 20}, standin=True)
    compare([str(tmp_path / "a")], str(tmp_path / "out"))
    text = (tmp_path / "out/comparison.md").read_text()
    assert "Stand-in assets: these numbers are not comparable with the benchmark." in text


def test_different_ends_are_pointed_out(study, caplog):
    write_run(study / "long", {6: 20}, iterations=6)
    compare([str(study / "loo"), str(study / "long")], str(study / "out"))
    assert "The last evaluations are of different iterations (4 to 6)" in caplog.text
