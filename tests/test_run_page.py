"""The page of a run: it holds what happened, needs nothing else, and a browser shows it."""

import json
import re
import shutil
import subprocess

import pytest
from browser import BROWSER, needs_browser
from toy_runs import EVALUATED, fit, history

from lightning_ript.cli import main
from lightning_ript.reports.run_page import changed_settings, read_run, write_page
from lightning_ript.storage.given_warnings import read_warnings
from lightning_ript.storage.run_directory import warnings_path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was evaluated before, in a folder of an awkward name."""
    folder = tmp_path_factory.mktemp("runs") / "a <b> & 'c'"
    report = "--trainer.callbacks+=lightning_ript.callbacks.EvaluationReport"
    config = ["--config=configs/toy.yaml", f"--run_dir={folder}"]
    main(["validate", *config, *EVALUATED, report, "--trainer.callbacks.name=before"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_ript.callbacks.run_report.write_page", write_page)
        fit(folder, 2, *EVALUATED)
    return folder


def test_the_page_of_a_run(run, capsys):
    page = run / "report.html"
    at_the_end = page.read_text()
    main(["report", str(run)])
    assert f"- page: {page}" in capsys.readouterr().out
    text = page.read_text()
    assert text == at_the_end
    assert "<h1>" in text
    assert "a &lt;b&gt; &amp; &#x27;c&#x27;" in text
    assert text.count("<svg") == 7
    for what in (
        "ToyPolicy",
        "2 tasks",
        "groups kept, dropped",
        "model.passes",
        "turn",
        "revision",
    ):
        assert what in text
    assert not re.search(r'(src|href)=(?!"?(data:|#))', text), "it asks for something else"


def test_settings_that_are_the_defaults_are_left_out(run):
    found = dict(changed_settings(read_run(run).settings))
    assert found["model.passes"] == 2
    assert found["data.groups_per_iteration"] == 6
    assert "model.clip_low" not in found
    assert "data.rollouts_per_context" not in found
    assert "trainer.gradient_clip_val" not in found


def test_several_runs(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    write_page([run, other], tmp_path / "both.html")
    text = (tmp_path / "both.html").read_text()
    assert "<h1>2 runs</h1>" in text
    assert text.count("<svg") == 1
    assert text.count("<tr>") == 3


def test_what_is_no_run(tmp_path, capsys):
    for content, said in ((None, "There is no"), ("[{", "history.json is not a history")):
        if content is not None:
            (tmp_path / "history.json").write_text(content)
        with pytest.raises(SystemExit) as caught:
            main(["report", str(tmp_path)])
        assert caught.value.code == 2
        assert said in capsys.readouterr().err


@needs_browser
def test_in_a_browser(run, tmp_path):
    page = tmp_path / "page.html"
    write_page([run], page)
    picture = tmp_path / "page.png"
    done = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--enable-logging=stderr", "--window-size=420,1600", f"--screenshot={picture}"),
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert picture.stat().st_size > 20_000
    assert "CONSOLE" not in done.stderr, done.stderr
    assert len(history(run)) == 2


def test_a_page_that_cannot_be_written(tmp_path):
    def fails(*_):
        raise OSError("no room")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_ript.callbacks.run_report.write_page", fails)
        with pytest.warns(UserWarning, match=r"report\.html could not be written \(no room\)"):
            fit(tmp_path, 1)
    (given,) = [g.text for g in read_warnings(tmp_path) if "no room" in g.text]
    assert f"lightning-ript report {tmp_path}" in given


def test_warnings_are_on_the_page(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "warned")
    warnings_path(folder).write_text(json.dumps([0.0, "the <floor> is wet"]) + "\n")
    write_page([folder], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<td>1970-01-01 00:00</td><td>the &lt;floor&gt; is wet</td>" in text
