"""LIBERO tasks of one's own: BDDL files, initial states, and what is wrong with them."""

import pickle
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from real_assets import REAL_ASSETS, run_probe
from slow_cases import first_and_slow

from lightning_ript.envs.libero import LiberoSpec
from lightning_ript.envs.libero.assets import ASSETS_VARIABLE
from lightning_ript.envs.libero.spec import SAMPLED_TESTS
from lightning_ript.envs.libero.suites import (
    SUITES,
    bddl_path,
    init_states,
    libero_root,
    read_states,
    suite_tasks,
)
from lightning_ript.envs.libero.task_files import check_task_files, find_task_files

SOUP = suite_tasks("libero_object")[0]
TEXT = bddl_path(SOUP).read_text()


@pytest.fixture
def task(tmp_path):
    """Writes a task's BDDL file."""

    def write(text=TEXT, name="my_soup"):
        path = tmp_path / "tasks" / f"{name}.bddl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_files_and_folders_make_a_suite(task, tmp_path):
    first = task(name="b")
    task(TEXT.replace("(:language Pick", "(:language Grasp\n "), name="a")
    other = tmp_path / "c.bddl"
    other.write_text(TEXT)
    spec = LiberoSpec("mine", bddl=[str(first.parent), str(other)])
    assert [(t.suite, t.index, t.name) for t in spec.tasks()] == [
        ("mine", 0, "a"),
        ("mine", 1, "b"),
        ("mine", 2, "c"),
    ]
    assert spec.tasks()[0].language == "grasp the alphabet soup and place it in the basket"
    assert [t.name for t in LiberoSpec("mine", ["c", 0], bddl=spec.bddl).tasks()] == ["c", "a"]
    assert spec.bddl_path(spec.tasks()[2]) == other
    assert len({spec.scene(t) for t in spec.tasks()}) == 1  # only instructions differ


def test_states_come_from_files_or_are_sampled(task, tmp_path):
    expected = init_states(SOUP)
    for name in ("zipped", "array", "both", "none"):
        task(name=name)
    source = libero_root() / "init_files" / "libero_object" / f"{SOUP.name}.pruned_init"
    states = tmp_path / "states"
    states.mkdir()
    (states / "zipped.init").write_bytes(source.read_bytes())
    np.savez(states / "array.pruned_init.npz", states=expected[:10])
    np.savez(states / "both.npz", expected[:1])
    (states / "both.pruned_init").write_bytes(source.read_bytes())
    np.savez(states / "of_another_task.npz", expected)
    spec = LiberoSpec("mine", bddl=[str(tmp_path / "tasks")], init_states=[str(states)])
    contexts = {t.name: spec.test_contexts(t) for t in spec.tasks()}
    np.testing.assert_array_equal([c.init_state for c in contexts["zipped"]], expected)
    np.testing.assert_array_equal([c.init_state for c in contexts["array"]], expected[:10])
    assert len(contexts["both"]) == 50
    assert all(c.init_state is None for c in contexts["none"])
    seeds = {c.seed for c in contexts["none"]}
    assert len(seeds) == SAMPLED_TESTS
    assert min(seeds) >= 2**31, "contexts of training have lower seeds"


@pytest.mark.slow
def test_every_task_of_libero_can_be_given_by_its_file(tmp_path):
    for suite in SUITES:
        folder = str(libero_root() / "bddl_files" / suite)
        tasks = find_task_files([folder])
        assert {t.name for t in suite_tasks(suite)} == set(tasks)
        check_task_files(tasks.values(), tmp_path)


BAD = {
    "no text": (b"\xff\xfe\x00", "is not text"),
    "no instruction": (re.sub(r"\(:language[^)]*\)", "", TEXT), "gives no instruction"),
    "no problem": ("(:language do it)", "is no BDDL problem that LIBERO can read"),
    "cut off": (TEXT[: len(TEXT) // 2], "is no BDDL problem that LIBERO can read"),
    "unknown problem": (
        TEXT.replace("LIBERO_Floor_Manipulation", "My_Moon_Base"),
        "is a problem 'my_moon_base', but LIBERO has",
    ),
    "a goal about nothing": (
        TEXT.replace("(And (In alphabet_soup_1", "(And (In alphabet_soup_9"),
        "has 'alphabet_soup_9' in its goal, but no object or region of the name",
    ),
    "an unknown predicate": (
        TEXT.replace("(And (In ", "(And (Levitates "),
        "has 'levitates' in its goal, but LIBERO knows",
    ),
    "an initial state about nothing": (
        TEXT.replace("(On alphabet_soup_1 ", "(On moon_rock_1 "),
        "has 'moon_rock_1' in its initial state",
    ),
    "a region on nothing": (
        TEXT.replace("(:target floor)", "(:target moon)", 1),
        "but no object or region of the name",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_in_a_sentence(case, task, tmp_path):
    text, said = BAD[case]
    file = task()
    assert text != TEXT
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        check_task_files(find_task_files([str(file)]).values(), tmp_path)
    assert str(file) in str(refused.value)


def test_classes_of_ones_own_are_registered(task, tmp_path, monkeypatch):
    file = task(TEXT.replace("- alphabet_soup", "- moon_soup"))
    tasks = find_task_files([str(file)])
    (tmp_path / "moon.py").write_text(
        "from libero.libero.envs.base_object import register_object\n"
        "from libero.libero.envs.objects import AlphabetSoup\n"
        "@register_object\n"
        "class MoonSoup(AlphabetSoup):\n"
        "    pass\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check_task_files(tasks.values(), tmp_path, ["moon"])
    with pytest.raises(ValueError, match="No module named 'mars'"):
        check_task_files(tasks.values(), tmp_path, ["mars"])


def test_settings_that_make_no_sense_are_refused(task, tmp_path):
    file = str(task())
    task(name="other")
    with pytest.raises(ValueError, match="libero_object is LIBERO's own suite"):
        LiberoSpec("libero_object", bddl=[file]).check()
    with pytest.raises(ValueError, match="init_states are of tasks that bddl names"):
        LiberoSpec("libero_object", init_states=[file]).check()
    with pytest.raises(FileNotFoundError, match=r"bddl names .*absent.*, which does not exist"):
        LiberoSpec("mine", bddl=["absent"]).check()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no file of \.bddl"):
        LiberoSpec("mine", bddl=[str(tmp_path / "empty")]).check()
    with pytest.raises(ValueError, match="two files give a task my_soup"):
        LiberoSpec("mine", bddl=[file, str(tmp_path / "tasks")]).check()
    states = tmp_path / "somebody.npz"
    np.savez(states, np.ones((1, 3)))
    with pytest.raises(ValueError, match=r"no BDDL file is called somebody\.bddl"):
        LiberoSpec("mine", bddl=[file], init_states=[str(states)]).check()


def bad_states():
    yield "flat", lambda path: np.savez(path, np.zeros(110)), r"array \(110,\)"
    yield "two arrays", lambda path: np.savez(path, a=np.ones((1, 2)), b=np.ones(2)), "not a file"
    yield "nan", lambda path: np.savez(path, np.full((2, 3), np.nan)), "not finite"
    yield "no numbers", lambda path: np.savez(path, np.array([["a"]])), "not a file of initial"
    yield "objects", lambda path: np.savez(path, np.array([[{}]])), "not a file of initial"
    yield "not a zip file", lambda path: path.write_bytes(b"states"), "not a file of initial"


@pytest.mark.parametrize(("case", "write", "said"), list(bad_states()), ids=lambda v: str(v)[:15])
def test_bad_states_are_refused(case, write, said, tmp_path):
    path = tmp_path / "states.npz"
    write(path)
    with pytest.raises(ValueError, match=said) as refused:
        read_states(path)
    assert str(path) in str(refused.value)


def test_pickles_that_run_something_are_refused(tmp_path):
    path = tmp_path / "task.pruned_init"

    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("run").touch, ())

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="it wants to load"):
        read_states(path)
    assert not (tmp_path / "run").exists()


PRO = Path(sys.prefix) / "libero-pro" / "libero" / "libero"
OTHERS = {  # suite of LIBERO-PRO: instruction of its first task, number of test states
    "libero_object_task": ("pick the cream cheese and place it in the basket", 50),
    "libero_goal_swap": ("open the middle layer of the drawer", 50),
    "libero_spatial_with_milk": (
        "pick the akita black bowl between the plate and the ramekin and place it on the plate",
        10,
    ),
    "libero_10_lan": ("switch stove on and put moka pot on it", 50),
}


@pytest.mark.libero
@pytest.mark.parametrize("suite", first_and_slow(OTHERS))
def test_other_peoples_tasks_run_as_in_libero(suite, tmp_path):
    if not PRO.is_dir():
        pytest.skip(f"LIBERO-PRO's files are not in {PRO}: `make test` fetches them")
    if not (REAL_ASSETS / "scenes").is_dir():
        pytest.skip(f"no LIBERO assets in {REAL_ASSETS}: set {ASSETS_VARIABLE}")
    bddl = sorted((PRO / "bddl_files" / suite).glob("*.bddl"))[0]
    states = PRO / "init_files" / suite
    seen = run_probe(
        "task_files_probe.py", REAL_ASSETS.resolve(), bddl, states, output=tmp_path / "seen.npz"
    )
    for what in ("states", "proprioception", "images"):
        np.testing.assert_array_equal(seen[f"ours_{what}"], seen[f"reference_{what}"])
    assert (seen["language"], seen["tests"]) == OTHERS[suite]
    first, other, again = seen["sampled"]
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert first.std() > 10
