import dataclasses

import numpy as np
import pytest

from lightning_ript.envs.libero import suites


@pytest.mark.parametrize(
    ("suite", "count"),
    [
        ("libero_spatial", 10),
        ("libero_object", 10),
        ("libero_goal", 10),
        ("libero_10", 10),
        ("libero_90", 90),
    ],
)
def test_every_task_has_its_files(suite, count):
    tasks = suites.suite_tasks(suite)
    assert [task.index for task in tasks] == list(range(count))
    assert len({task.name for task in tasks}) == count
    for task in tasks:
        assert suites.bddl_path(task).is_file()
    states = suites.init_states(tasks[-1])
    assert states.shape[0] == 50
    assert states.dtype == np.float64
    assert np.isfinite(states).all()


def test_instructions_drop_the_scene():
    soup = suites.suite_tasks("libero_object")[0]
    assert soup.language == "pick up the alphabet soup and place it in the basket"
    kitchen = suites.suite_tasks("libero_10")[2]
    assert kitchen.name.startswith("KITCHEN_SCENE3_")
    assert kitchen.language == "turn on the stove and put the moka pot on it"
    ten = next(task for task in suites.suite_tasks("libero_90") if "SCENE10" in task.name)
    assert ten.language == "close the top drawer of the cabinet"


def test_tasks_are_found_by_name_and_number_in_the_order_asked():
    tasks = suites.suite_tasks("libero_goal")
    assert suites.find_tasks("libero_goal", [7, tasks[2].name]) == (tasks[7], tasks[2])
    assert suites.find_tasks("libero_goal") == tasks


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ([10], "numbered 0 to 9"),
        ([-1], "numbered 0 to 9"),
        ([True], "has no task True"),
        (["stove"], "has no task 'stove'"),
        ([1, 1], "is listed twice"),
        ([], "must be a list"),
        ("turn_on_the_stove", "must be a list"),
    ],
)
def test_a_wrong_task_is_refused(wanted, message):
    with pytest.raises(ValueError, match=message):
        suites.find_tasks("libero_goal", wanted)


def test_a_wrong_suite_is_refused_with_the_right_ones():
    with pytest.raises(ValueError, match=r"libero_100.*libero_spatial, libero_object"):
        suites.suite_tasks("libero_100")


def test_a_state_file_that_would_run_code_is_refused(tmp_path, monkeypatch):
    import pickle
    import zipfile

    class Trap:
        def __reduce__(self):
            return (print, ("ran",))

    task = dataclasses.replace(suites.suite_tasks("libero_object")[0], name="trap")
    folder = tmp_path / "init_files" / "libero_object"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "trap.pruned_init", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Trap()))
    monkeypatch.setattr(suites, "libero_root", lambda: tmp_path)
    with pytest.raises(ValueError, match=r"trap.pruned_init .*builtins\.print"):
        suites.init_states(task)
