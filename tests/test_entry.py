"""What answers at once, and configs that are found from any folder."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from toy_runs import history

from lightning_ript.__main__ import main as entry
from lightning_ript.cli import main
from lightning_ript.commands.quickstart import steps
from lightning_ript.running.configs import CONFIGS, find_config, names, with_config_paths

ROOT = Path(__file__).parents[1]


def test_help_needs_no_torch():
    code = (
        "import sys; sys.argv = ['lightning-ript', {!r}];"
        "from lightning_ript.__main__ import main; main();"
        "assert not {{'torch', 'lightning', 'jsonargparse'}} & set(sys.modules)"
    )
    for what, said in (("--help", "quickstart"), ("configs", "quest/libero_90/ript")):
        command = [sys.executable, "-c", code.format(what)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout


def test_a_reader_may_leave():
    """As `head` does, before everything is written."""
    code = (
        "import os, sys; sys.argv = ['lightning-ript', 'configs'];"
        "from lightning_ript.__main__ import main; os.read(0, 1); main()"
    )
    command = [sys.executable, "-c", code]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes) as listing:
        listing.stdout.close()
        listing.stdin.write(b"x")
        listing.stdin.flush()
        assert listing.stderr.read() == b""
        assert listing.wait() == 128 + signal.SIGPIPE


def test_every_config_says_what_it_is(capsys):
    main(["configs"])
    for line in capsys.readouterr().out.splitlines():
        name, _, summary = line.partition(" ")
        assert len(summary.strip()) > 8, name


def test_help_of_configs_is_prose(capsys):
    main(["configs", "--help"])
    said = capsys.readouterr().out
    assert "Lists the package's configs" in said
    assert "Args:" not in said


def test_a_config_is_shown(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["lightning-ript", "configs", "toy"])
    entry()
    assert yaml.safe_load(capsys.readouterr().out)["run_dir"] == "runs/toy"
    with pytest.raises(SystemExit, match="No config has 'moon' in its name"):
        main(["configs", "moon"])


def test_configs_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = str(CONFIGS / "quest" / "ript.yaml")
    for name in ("quest/ript", "quest/ript.yaml", "configs/quest/ript.yaml"):
        assert find_config(name) == expected
    assert find_config("../__init__.py") == "../__init__.py"
    (tmp_path / "quest").mkdir()
    (tmp_path / "quest" / "ript").write_text("")
    assert find_config("quest/ript") == "quest/ript"  # a file of that path wins
    typed = ["fit", "--config", "toy", "--config=quest/sft", "-c", "toy", "--name", "toy"]
    assert with_config_paths(typed) == [
        *("fit", "--config", str(CONFIGS / "toy.yaml")),
        f"--config={CONFIGS / 'quest' / 'sft.yaml'}",
        *("-c", str(CONFIGS / "toy.yaml"), "--name", "toy"),
    ]


def test_a_run_from_another_folder(tmp_path, monkeypatch):
    place = tmp_path / "Räume mit Platz"
    place.mkdir()
    monkeypatch.chdir(place)
    short = ["--trainer.limit_val_batches=0", "--data.groups_per_iteration=4"]
    main(["fit", "--config", "toy", "--run_dir=lauf", "--trainer.max_epochs=1", *short])
    assert len(history(place / "lauf")) == 1


def test_the_wheel_holds_the_configs():
    listed = {
        str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*.yaml")
    }
    assert listed == {f"{name}.yaml" for name in names()}


def build(kind, source, folder):
    """Builds a `wheel` or an `sdist` of a source tree and returns its file."""
    code = f"from setuptools.build_meta import build_{kind} as build; build({str(folder)!r})"
    folder.mkdir()
    subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, check=True)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source distribution, unpacked, and the clone that it was built in."""
    folder = tmp_path_factory.mktemp("source")
    clone = shutil.copytree(
        ROOT,
        folder / "clone",
        symlinks=True,
        ignore=shutil.ignore_patterns(".git", ".venv*", "runs", "build", "site", "*.egg-info"),
    )
    with tarfile.open(build("sdist", clone, folder / "sdist")) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked, clone


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Built as an index's users build it, from the source distribution."""
    return build("wheel", sdist[0], tmp_path_factory.mktemp("wheels") / "of sdist")


def test_the_source_distribution_is_whole(sdist, wheel, tmp_path):
    unpacked, clone = sdist
    for name in ("README.md", "LICENSE", "pyproject.toml", "callbacks/run_report.py"):
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes()
    of_clone = build("wheel", clone, tmp_path / "wheel")
    names = [sorted(zipfile.ZipFile(file).namelist()) for file in (wheel, of_clone)]
    assert names[0] == names[1]
    assert {"lightning_ript/configs/toy.yaml", "lightning_ript/callbacks/run_report.py"} <= {
        *names[0]
    }


def test_from_the_wheel(wheel, tmp_path):
    """In a folder with spaces and other letters, without a locale, the clone out of reach."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    site, place = tmp_path / "site", tmp_path / "eine Mappe für Läufe"
    subprocess.run([*pip, "install", "--no-deps", f"--target={site}", str(wheel)], check=True)
    place.mkdir()
    command = [
        *(sys.executable, "-m", "lightning_ript", "fit", "--config=toy", "--run_dir=lauf"),
        *("--trainer.max_epochs=1", "--data.groups_per_iteration=4"),
    ]
    done = subprocess.run(
        command,
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(site), "LC_ALL": "C", "PYTHONUTF8": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(history(place / "lauf")) == 1
    where = "import lightning_ript; print(lightning_ript.__file__)"
    shown = subprocess.run(
        [sys.executable, "-c", where],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.startswith(str(site))


def test_the_quickstarts_steps(tmp_path):
    """Each command's settings are those that it knows; the whole runs with `make quickstart`."""
    (tmp_path / "demonstrations").mkdir()
    todo = steps(3, tmp_path)
    assert [step.arguments[0] for step in todo] == [
        *("collect-demos", "fit", "fit", "validate", "fit", "validate", "report")
    ]
    for step in todo:
        for argument in step.arguments:
            option, _, value = argument.partition("=")
            assert option != "--config" or Path(value).is_file(), argument
            assert "seed" not in option or value == "3"
    assert todo[4].result == todo[5].result == tmp_path / "ript" / "evaluation" / "after.json"
