"""README.md and docs/: what they tell a reader to type runs, shortened; what they name exists.

Commands run in the order of the site's pages, in a folder that looks like the repository's root
after `make quickstart`.
"""

import json
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from commands_page import parser_of
from test_supervised import TASK, write_demonstrations

from lightning_ript.cli import main
from lightning_ript.envs.libero.assets import HUB_DATASET, cache_folder
from lightning_ript.envs.libero.suites import suite_tasks
from lightning_ript.module import RIPTLightningModule
from lightning_ript.policies.quest import QueSTConfig, QueSTPolicy, save_official

ROOT = Path(__file__).parents[1]


def in_order(nav):
    """The pages of the site's table of contents."""
    for entry in nav:
        for target in entry.values():
            if isinstance(target, str):
                yield ROOT / "docs" / target
            else:
                yield from in_order(target)


SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
PAGES = [ROOT / "README.md", *in_order(SITE["nav"])]
WITH_YAML = [page for page in PAGES if "```yaml" in page.read_text()]
SETTING = re.compile(r"`(?:--)?((?:model|data|trainer)\.[\w.]+)")
WITH_SETTINGS = [page for page in PAGES if SETTING.search(page.read_text())]
LIBERO = "configs/quickstart/libero.yaml"
# Runs that take days on GPUs: those of a page, and those with one of these files.
PARSED_ONLY = {"experiments.md"}
FULL_SIZE = {
    "configs/flow/ript.yaml",
    "configs/openvla_oft/ript.yaml",
    "configs/quest/ript.yaml",
}
# A block that begins so is a file of that name, as a reader would write it.
FILE_NAME = re.compile(r"# (\w+\.(?:py|yaml))\b")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
# What is appended to a command of which these words are a part. `{standins}` is a folder of assets.
SHORTER = {
    ("fit",): QUIET,
    ("validate",): QUIET,
    ("sweep",): QUIET,
    ("--run_dir", "configs/toy.yaml"): ["--trainer.max_epochs=1", "--data.eval_states_per_task=2"],
    ("--run_dir", "gaussian.yaml"): ["--trainer.max_epochs=1"],
    ("configs/quest/autoencoder.yaml",): ["--trainer.max_epochs=1", "--trainer.overfit_batches=1"],
    ("configs/quest/sft.yaml",): [
        "--trainer.max_epochs=1",
        "--trainer.overfit_batches=1",
        "--data.batch_size=2",
        "--model.policy.language=hashed",  # CLIP's weights are on the hub
    ],
    ("configs/smolvla/small/sft.yaml",): [
        "--trainer.max_epochs=1",
        "--trainer.overfit_batches=1",
        "--data.batch_size=2",
    ],
    (LIBERO,): [
        "--data.environment.assets={standins}",
        "--data.environment.max_steps=16",
        "--data.eval_states_per_task=1",
        "--data.num_workers=1",
    ],
    ("fit", LIBERO): [
        "--trainer.max_epochs=1",
        "--trainer.limit_val_batches=0",
        "--data.groups_per_iteration=1",
        "--data.rollouts_per_context=2",
        "--data.dynamic_sampling=false",  # nobody succeeds in 16 steps
        "--model.passes=1",
    ],
    ("collect-demos",): [
        "--assets={standins}",
        "--out=collected",
        "--demos=1",
        "--workers=1",
        "--image_size=16",
    ],
    ("collect-demos", "configs/quickstart/demos.yaml"): ["--out=collected_noisy"],
}


@dataclass(frozen=True)
class Command:
    page: str
    words: tuple[str, ...]

    @property
    def needs_simulator(self) -> bool:
        return "collect-demos" in self.words or LIBERO in self.words

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def blocks(language):
    """The fenced blocks of that language: (page, text)."""
    return [
        (page.name, text)
        for page in PAGES
        for found, text in FENCE.findall(page.read_text())
        if found == language
    ]


def commands():
    lines = [
        (page, line)
        for page, text in blocks("bash")
        for line in text.replace("\\\n", " ").splitlines()
        if line.strip()
    ]
    marked = []
    for page, line in lines:
        command = Command(page, tuple(shlex.split(line)))
        marks = [pytest.mark.libero] if command.needs_simulator else []
        marked.append(pytest.param(command, marks=marks, id=str(command)[:100]))
    return marked


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """The repository's root, with what the commands presuppose: small and untrained."""
    root = tmp_path_factory.mktemp("root")
    for name in ("configs", "Makefile"):
        (root / name).symlink_to(ROOT / name)
    for language in ("python", "yaml"):
        for _, text in blocks(language):
            if name := FILE_NAME.match(text):
                (root / name[1]).write_text(text)
    (root / "demonstrations").mkdir()
    write_demonstrations(root / f"demonstrations/{TASK}_demo.hdf5", size=128)
    torch.manual_seed(0)
    policy = quickstart_policy()
    save_official(policy.model, root / "quest.pth", "hashed")
    trainer = L.Trainer(accelerator="cpu", logger=False, default_root_dir=root)
    trainer.strategy.connect(RIPTLightningModule(policy))
    for stage in ("sft", "ript"):
        trainer.save_checkpoint(root / f"runs/quickstart/seed0/{stage}/checkpoints/last.ckpt")

    def snapshot_download(_repo, *, allow_patterns, local_dir, **_settings):
        (suite,) = (pattern.partition("/")[0] for pattern in allow_patterns)
        (local_dir / suite).mkdir(parents=True, exist_ok=True)
        for task in suite_tasks(suite):
            write_demonstrations(local_dir / suite / f"{task.name}_demo.hdf5", lengths=(5,))

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.syspath_prepend(root)  # as `python -m` does
        # The hub has whatever is asked for.
        patch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(root / "quest.pth"))
        patch.setattr("huggingface_hub.snapshot_download", snapshot_download)
        yield root


def quickstart_policy():
    file = (ROOT / "configs/quickstart/policy.yaml").read_text()
    sizes = yaml.safe_load(file)["model"]["init_args"]["policy"]["init_args"]["sizes"]
    return QueSTPolicy(QueSTConfig(**sizes))


def standins():
    from lightning_ript.envs.libero.standins import build_standins

    return build_standins(cache_folder())


@pytest.mark.parametrize("command", commands())
def test_command(command, workspace):
    program, *given = command.words
    if program == "make":
        dry = subprocess.run(
            [program, "-n", *given], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert dry.returncode == 0, dry.stderr
    elif program == "source":
        assert f"{re.search(r'VENV [?]= (.*)', (ROOT / 'Makefile').read_text())[1]}/bin" in given[0]
    elif program == "hf":  # downloads gigabytes; the hub's client is another project's
        assert given[:4] == ["download", "--repo-type", "dataset", HUB_DATASET]
        assert given[4:] == ["--local-dir", "~/.cache/libero/assets"]
    elif program == "sbatch":
        script = next(word for word in given if word.endswith(".sbatch"))
        assert (ROOT / script).is_file()
        only_parse(given[given.index(script) + 1 :])
    elif program == "torchrun":  # tests/test_rank_faults.py runs it
        only_parse(given[given.index("lightning_ript") + 1 :])
    elif given[0] == "merge-adapter":  # of 15 GB of weights
        parser_of("merge-adapter").parse_args(given[1:])
    elif given[0] in ("fit", "validate") and (
        command.page in PARSED_ONLY or FULL_SIZE & set(command.words)
    ):
        only_parse(given)
    else:
        if given[:2] == ["-m", "lightning_ript"]:
            program, given = "lightning-ript", given[2:]
        assert program == "lightning-ript", f"no rule says how to test {command}"
        for words, more in SHORTER.items():
            if set(words) <= set(command.words):
                given += [
                    word.format(standins=standins()) if "{" in word else word for word in more
                ]
        main(given)


def only_parse(arguments):
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--print_config"])
    assert caught.value.code == 0


def test_the_toy_does_what_is_said(workspace):
    """After the commands above. Its percentages are for torch's own rounding, so with a margin."""
    history = json.loads(Path("runs/toy/history.json").read_text())
    text = (ROOT / "docs/index.md").read_text()
    said = re.search(
        r"succeeds in (\d+) % .*reaches (\d+) % .* (\d+) % after the eighth", text, re.DOTALL
    )
    assert said
    found = [
        history[0]["metrics"]["rollout/success_rate"],
        history[0]["metrics"]["val/success_rate"],
        history[7]["metrics"]["val/success_rate"],
    ]
    assert [100 * rate for rate in found] == pytest.approx(list(map(int, said.groups())), abs=3)
    for name in re.findall(r"`([a-z_]+\.(?:json|png))`", text.split("`runs/toy/`")[1][:200]):
        assert Path("runs/toy", name).is_file()
    assert list(Path("runs/toy/evaluation").glob("epoch=*.json"))
    assert len(history) == 10  # the example of resuming has made it longer


def test_your_own_policy_learns_as_is_said(workspace):
    """After the commands above; the margin is for torch's own rounding."""
    page = (ROOT / "docs/bring_your_own_vla.md").read_text()
    said = re.search(r"is (\d+) % after the first iteration and (\d+) % after the\s+eighth", page)
    assert said
    history = json.loads(Path("runs/gaussian/history.json").read_text())
    rates = [100 * history[i]["metrics"]["val/success_rate"] for i in (0, 7)]
    assert rates == pytest.approx(list(map(int, said.groups())), abs=8)
    assert rates[1] > rates[0] + 30


def test_the_policy_that_denoises_learns_as_is_said(workspace):
    """By the page's own command, in full."""
    (words,) = (
        shlex.split(line)
        for page, text in blocks("bash")
        for line in text.replace("\\\n", " ").splitlines()
        if page == "bring_your_own_vla.md" and "ToyFlowPolicy" in line
    )
    assert words[:4] == ["python", "-m", "lightning_ript", "fit"]
    main([*words[3:], *QUIET, "--run_dir=runs/flow_in_full", "--trainer.max_epochs=9"])
    history = json.loads(Path("runs/flow_in_full/history.json").read_text())
    rates = [entry["metrics"]["val/success_rate"] for entry in history]
    assert rates[0] < 0.5
    assert max(rates[7:]) > 0.9


def test_the_metrics_are_those_logged(workspace):
    metrics = json.loads(Path("runs/toy/history.json").read_text())[0]["metrics"]
    page = (ROOT / "docs/reading_a_run.md").read_text()
    table = page.split("## Metrics")[1].split("```")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    logged = {re.sub(r"(val/success_rate/).*", r"\1<task>", name) for name in metrics}
    assert named == logged


@pytest.mark.parametrize("page", WITH_YAML, ids=lambda page: page.name)
def test_yaml_parses(page, workspace, capsys):
    """Alone if it names a model, else on top of a run's config; a misspelt key would be refused."""
    here = [text for name, text in blocks("yaml") if name == page.name]
    assert here
    for number, text in enumerate(here):
        file = Path(f"{page.stem}{number}.yaml")
        file.write_text(text)
        names_one = re.search(r"^model:\n +class_path:", text, re.MULTILINE)
        below = [] if names_one else ["--config=configs/toy.yaml"]
        with pytest.raises(SystemExit) as caught:
            main(["fit", *below, f"--config={file}", "--print_config"])
        assert caught.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", WITH_SETTINGS, ids=lambda page: page.name)
def test_settings_exist(page, workspace, capsys):
    """Those that the text names as `model.…`, `data.…` or `trainer.…`, with or without dashes."""
    named = set(SETTING.findall(page.read_text()))
    (mine,) = [text for _, text in blocks("yaml") if "LiberoSpec" in text and "model:" in text]
    Path("mine.yaml").write_text(mine)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["fit", "--config=mine.yaml", "--print_config"])
    there = set(dotted(yaml.safe_load(capsys.readouterr().out)))
    files = [f"--config=configs/openvla_oft/{name}.yaml" for name in ("ript", "libero_goal")]
    with pytest.raises(SystemExit):
        main(["fit", *files, "--print_config"])
    there |= set(dotted(yaml.safe_load(capsys.readouterr().out)))
    assert named <= there


def dotted(settings, above=""):
    """All names below, as the command line takes them: without `init_args`."""
    for name, value in settings.items():
        path = above if name == "init_args" else f"{above}.{name}".lstrip(".")
        yield path
        if isinstance(value, dict):
            yield from dotted(value, path)


def test_wandb(workspace):
    """The snippet logs without a network; it says so itself."""
    pytest.importorskip("wandb")
    (text,) = [text for _, text in blocks("yaml") if "WandbLogger" in text]
    assert "offline: true" in text
    Path("wandb.yaml").write_text(text)
    main(
        [
            *("fit", "--config=configs/toy.yaml", "--config=wandb.yaml", *QUIET),
            *("--trainer.max_epochs=1", "--run_dir=runs/wandb"),
        ]
    )
    assert list(Path("runs/wandb").glob("offline-run-*/*.wandb"))


def test_python(workspace):
    for page, text in blocks("python"):
        if page == "gymnasium.md":  # loads OpenGL: test_gymnasium.py runs it, without torch
            continue
        exec(compile(text, page, "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        place, _, anchor = target.partition("#")
        file = page.parent / place if place else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(page):
    """The names that a page's headings have in links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
