"""A run as one HTML file that needs nothing else: figures, videos, settings."""

from __future__ import annotations

import base64
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml

from lightning_ript.reports import run_figures
from lightning_ript.reports.video import by_episode, failed
from lightning_ript.storage.evaluation_result import EvaluationResult, TaskResult
from lightning_ript.storage.files import replacing
from lightning_ript.storage.given_warnings import Given, read_warnings
from lightning_ript.storage.history import read_history
from lightning_ript.storage.run_directory import evaluation_path, videos_of

SHOWN_VIDEOS = 6  # pairs
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 62rem; padding: 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { margin-top: 2.5rem; font-size: 1.25rem; }
.numbers, .figures, .pair { display: grid; gap: 1rem; }
.numbers { grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); margin-top: 1rem; }
.numbers div { background: var(--soft); border-radius: .5rem; padding: .75rem 1rem; }
.numbers strong { display: block; font-size: 1.5rem; }
.figures { grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
figure { margin: 0; } figcaption { font-weight: 600; margin-top: .5rem; } svg { width: 100%; }
.pair { grid-template-columns: 1fr 1fr; margin-bottom: 1rem; } video { width: 100%; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
td, th { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: left; }
td { overflow-wrap: anywhere; } small { opacity: .75; }
"""


@dataclass(frozen=True)
class Run:
    """What a run's directory tells.

    Attributes:
        folder: The directory.
        history: Its iterations.
        before: The evaluation of the starting policy, if there was one.
        after: The last evaluation, if there was one.
        settings: The resolved config of its last start, if it can be found.
        warnings: Those that it gave.
    """

    folder: Path
    history: Sequence[Mapping[str, Any]]
    before: EvaluationResult | None
    after: EvaluationResult | None
    settings: Mapping[str, Any]
    warnings: Sequence[Given]

    @property
    def name(self) -> str:
        """Its last folders, without those that all runs have."""
        return "/".join(self.folder.resolve().parts[-2:])


def read_run(folder: str | Path) -> Run:
    """Reads what there is.

    Raises:
        FileNotFoundError: It is no run directory with a history.
        ValueError: A file in it is damaged.
    """
    folder = Path(folder)
    history = read_history(folder)
    results = {}
    for name in ("before", "after"):
        file = evaluation_path(folder, name)
        results[name] = EvaluationResult.read(file) if file.is_file() else None
    evaluated = [entry["evaluation"] for entry in history if entry["evaluation"] is not None]
    after = results["after"]
    if after is None and evaluated:
        after = EvaluationResult.from_dict(evaluated[-1])
    configs = sorted(folder.glob("**/config.yaml"), key=lambda file: file.stat().st_mtime)
    settings = yaml.safe_load(configs[-1].read_text()) if configs else {}
    return Run(folder, history, results["before"], after, settings, read_warnings(folder))


def write_page(folders: Sequence[str | Path], out: str | Path) -> None:
    """Writes the page of one run, or of several together.

    Args:
        folders: Run directories.
        out: The HTML file.

    Raises:
        OSError: One of them is none.
        ValueError: Something in them is damaged.
    """
    runs = [read_run(folder) for folder in folders]
    parts = list(_one(runs[0]) if len(runs) == 1 else _several(runs))
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<link rel=icon href=data:,><title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<body>{''.join(parts)}</body></html>\n"
    )
    with replacing(out) as draft:  # names of folders keep their letters in any locale
        draft.write_bytes(page.encode("utf-8", "surrogateescape"))


def _one(run: Run) -> Iterator[str]:
    yield f"<h1>{escape(run.name)}</h1><small>{escape(_what(run))}</small>"
    yield _numbers(run)
    for caveat in () if run.after is None else run.after.caveats:
        yield f"<p><strong>{escape(caveat)}</strong></p>"
    yield "<h2>Success</h2><div class=figures>"
    success = run_figures.success({run.name: run.history}, {run.name: run.before})
    yield _figure("Over iterations of learning", success)
    if run.after is not None:
        yield _figure("By task", run_figures.tasks(run.before, run.after))
    yield "</div>"
    if run.history:
        yield "<h2>Practice</h2><div class=figures>"
        for title, draw in run_figures.SINGLE:
            yield _figure(title, draw(run.history))
        yield "</div>"
    yield from _videos(run)
    if run.warnings:
        yield "<h2>Warnings</h2>"
        rows = [[when(given.time), given.text] for given in run.warnings]
        yield _table(["when (UTC)", "what"], rows)
    yield "<h2>Settings that differ from the defaults</h2>"
    yield _table(["setting", "value"], [[n, str(v)] for n, v in changed_settings(run.settings)])
    metadata = {} if run.before is None else run.before.metadata
    versions = dict(metadata.get("versions", {}))
    if metadata.get("revision"):
        versions["revision"] = metadata["revision"]
    if versions:
        yield "<h2>Versions</h2>"
        yield _table(["package", "version"], [[n, str(v)] for n, v in versions.items()])


def when(seconds: float) -> str:
    """A moment, given in seconds since 1970."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M")


def _several(runs: Sequence[Run]) -> Iterator[str]:
    names = _different([run.name for run in runs])
    yield f"<h1>{len(runs)} runs</h1><h2>Success</h2><div class=figures>"
    histories = {name: run.history for name, run in zip(names, runs, strict=True)}
    baselines = {name: run.before for name, run in zip(names, runs, strict=True)}
    yield _figure("Over iterations of learning", run_figures.success(histories, baselines))
    yield "</div>"
    yield _table(
        ["run", "iterations", "before", "after", "minutes"],
        [
            [
                name,
                str(len(run.history)),
                _rate(run.before),
                _rate(run.after),
                f"{run.history[-1]['seconds'] / 60:.0f}" if run.history else "0",
            ]
            for name, run in zip(names, runs, strict=True)
        ],
    )


def _different(names: Sequence[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, 1)]


def _what(run: Run) -> str:
    policy = run.settings.get("model", {}).get("init_args", {}).get("policy", {})
    parts = [str(policy.get("class_path", "")).rpartition(".")[2]] if policy else []
    if run.after is not None:
        count = len(run.after.tasks)
        parts.append(run.after.tasks[0].language if count == 1 else f"{count} tasks")
    return ", ".join(part for part in parts if part)


def _numbers(run: Run) -> str:
    seconds = run.history[-1]["seconds"] if run.history else 0.0
    kept = sum(entry["metrics"].get("rollout/groups_kept", 0) for entry in run.history)
    dropped = sum(entry["metrics"].get("rollout/groups_dropped", 0) for entry in run.history)
    shown = {
        "before RIPT": _rate(run.before),
        "after": _rate(run.after),
        "iterations": str(len(run.history)),
        "groups kept, dropped": f"{kept:.0f}, {dropped:.0f}",
        "minutes": f"{seconds / 60:.0f}",
    }
    cells = []
    for name, value in shown.items():
        number, bracket, rest = value.partition(" (")
        small = f"<small>95%: {escape(rest.rstrip(')'))}</small><br>" if bracket else ""
        cells.append(f"<div><strong>{escape(number)}</strong>{small}{escape(name)}</div>")
    return f"<div class=numbers>{''.join(cells)}</div>"


def _rate(result: EvaluationResult | None) -> str:
    if result is None or not result.overall.episodes:
        return "–"
    overall: TaskResult = result.overall
    low, high = overall.interval()
    return f"{overall.rate:.0%} ({low:.0%}–{high:.0%})"


def _figure(title: str, drawing: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawing}</figure>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "<p>None.</p>"
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<div class=scroll><table><tr>{head}</tr>{body}</table></div>"


# -- videos ----------------------------------------------------------------------------------------


def _videos(run: Run) -> Iterator[str]:
    """The same episodes before and after: first what fails in the end, then what was learned."""
    old, new = (
        by_episode(videos_of(evaluation_path(run.folder, name))) for name in ("before", "after")
    )
    pairs = sorted(
        old.keys() & new.keys(),
        key=lambda each: (not failed(new[each]), not failed(old[each]), each),
    )
    if not pairs:
        return
    yield "<h2>Before and after</h2>"
    for episode in pairs[:SHOWN_VIDEOS]:
        yield "<div class=pair>"
        for when, path in (("before", old[episode]), ("after", new[episode])):
            said = f"{when}: {'failure' if failed(path) else 'success'}"
            data = base64.b64encode(path.read_bytes()).decode()
            yield (
                f"<figure><video controls muted loop playsinline preload=metadata "
                f'src="data:video/mp4;base64,{data}"></video>'
                f"<figcaption>{said}</figcaption></figure>"
            )
        yield "</div>"
    if len(pairs) > SHOWN_VIDEOS:
        more = len(pairs) - SHOWN_VIDEOS
        yield f"<small>{more} more pairs in {escape(str(run.folder))}/videos.</small>"


# -- settings --------------------------------------------------------------------------------------


def changed_settings(settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Those of a resolved config that are not what its classes would take by themselves."""
    return sorted(_changed(settings, {}, ""))


def _changed(given: Mapping[str, Any], defaults: Mapping[str, Any], name: str) -> Iterator[Any]:
    for key, value in given.items():
        inner = f"{name}.{key}" if name else str(key)
        if isinstance(value, Mapping) and "class_path" in value:
            yield inner, str(value["class_path"]).rpartition(".")[2]
            yield from _changed(
                value.get("init_args") or {}, _defaults_of(value["class_path"]), inner
            )
        elif isinstance(value, Mapping) and not isinstance(defaults.get(key), Mapping):
            default = defaults.get(key)
            fields = vars(default) if hasattr(default, "__dataclass_fields__") else {}
            known = _defaults_of("lightning.Trainer") if inner == "trainer" else fields
            yield from _changed(value, known, inner)
        elif value is not None and _plain(value) != _plain(defaults.get(key)):
            yield inner, value


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _defaults_of(path: str) -> dict[str, Any]:
    """What a class or a function takes where nothing is given; nothing if it is not here."""
    try:
        parameters = inspect.signature(resolve_name(path)).parameters.values()
    except (ImportError, AttributeError, ValueError, TypeError):
        return {}
    return {each.name: each.default for each in parameters if each.default is not each.empty}
