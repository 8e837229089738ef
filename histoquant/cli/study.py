"""The commands of a study: demo, init, check, run."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from histoquant.cli.app import Cluster, Json, Log, Outside, Quiet, Workers, app
from histoquant.console import Printer
from histoquant.errors import InputError

if TYPE_CHECKING:
    from histoquant.batch import Outcome
    from histoquant.inputs import Checked
    from histoquant.steps import Extent

EXAMPLE = "histoquant run study.csv --recipe recipe.toml --out results"

SheetRecipe = Annotated[
    Path | None,
    typer.Option("--recipe", "-r", help="The recipe (TOML); else each row's, from the sheet's column 'recipe'."),
]

_watching = partial(typer.Option, rich_help_panel="Watching a scanner's folder")


@app.command(epilog="Example:  histoquant demo --out demo_out")
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder to make.")] = Path("histoquant_demo"),
    workers: Workers = None,
    quiet: Quiet = False,
    log: Log = None,
) -> None:
    """Run the sample study (TUNEL, 2 groups x 3 animals, true effect -50 %) end to end."""
    from histoquant.batch import run_study
    from histoquant.inputs import load
    from histoquant.samples import sample_study

    tell = Printer(quiet, log)
    study = sample_study(out.with_name(f"{out.name}_study"), tell)
    checked = load(study, study.with_name("recipe.toml"))
    with tell.progress("demo") as show:
        outcome = run_study(checked, out, workers=workers, command=sys.argv, progress=show)
    _report(outcome, tell)


@app.command(epilog="Example:  histoquant init slides/ --out study.csv")
def init(
    folder: Annotated[Path, typer.Argument(help="Folder with slides; it is searched with its subfolders.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Sample sheet to write; FOLDER/study.csv.")] = None,
    pixel_size_um: Annotated[
        float | None, typer.Option("--pixel-size-um", help="For slides whose file does not say.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing sheet and recipe.")] = False,
    quiet: Quiet = False,
) -> None:
    """Look into every slide of a folder and write a sample sheet and a recipe to start from."""
    from histoquant.starter import write_starter

    tell = Printer(quiet, None)
    for line in write_starter(folder, out or folder / "study.csv", pixel_size_um=pixel_size_um, force=force):
        tell(line)


@app.command(
    epilog="Example:  histoquant check study.csv --recipe recipe.toml\n\n"
    "Before a night on a cluster:  histoquant check study.csv --recipe recipe.toml --cluster slurm.toml"
)
def check(
    study: Annotated[Path, typer.Argument(help="The sample sheet (CSV).")],
    recipe: SheetRecipe = None,
    cluster: Cluster = None,
    allow_outside: Outside = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Open everything, compute nothing, and print all faults at once. Exit code 0 or 2.

    With --cluster also the submit script, and memory and time by one measured block of tiles.
    """
    from histoquant.assays import check_any, check_assays
    from histoquant.batch import check_study
    from histoquant.inputs import KINDS, load, load_assays, read_profile

    profile = None if cluster is None else read_profile(cluster)
    _needs_recipe(study, recipe, "check")
    extents: dict[str, Extent] = {}
    if recipe is None:
        if profile is not None:
            raise InputError("--cluster estimates one assay.", "Give its recipe, and a sheet of its slides.")
        assays = load_assays(study, allow_outside=allow_outside)
        sound, failures = check_assays(assays)
        n_slides = sum(len(each.study.included) for each in assays.values())
    else:
        checked = load(study, recipe, allow_outside=allow_outside, kinds=KINDS)
        n_slides = len(checked.study.included)
        if checked.recipe.kind == "cells":
            extents, failures = check_study(checked)
        else:
            failures = check_any(checked)
        faulty = {failure.slide for failure in failures}
        sound = [row.slide_id for row in checked.taken if row.slide_id not in faulty]
    tell = Printer(quiet, None)
    told = None
    if profile is not None and extents:
        from histoquant.estimate import estimate

        told = estimate(checked, extents, profile)
    if json_:
        found = {"sound": sound, "faults": [vars(failure) for failure in failures]}
        print(json.dumps(found | ({"estimate": told.as_dict()} if told else {}), indent=2))
    for failure in () if json_ else failures:
        print(f"{failure.slide}: {failure.error} {failure.remedy}", file=sys.stderr)
    if not json_:
        for line in told.lines() if told else ():
            tell(line)
        tell(f"{len(sound)} of {n_slides} slide(s) can be analysed; {len(failures)} fault(s).")
    raise typer.Exit(2 if failures else 0)


@app.command(
    epilog="Example:  histoquant run study.csv --recipe recipe.toml --out results --workers 2\n\n"
    "A scanner's folder:  histoquant run study.csv -r recipe.toml -o results --watch --until-idle 60\n\n"
    "Several assays, each row with its recipe in a column 'recipe':  histoquant run study.csv --out results\n\n"
    "On a cluster:  histoquant run study.csv -r recipe.toml -o results --cluster slurm.toml\n\n"
    "The same again:  histoquant run --repeat results --out results_again"
)
def run(
    study: Annotated[Path | None, typer.Argument(help="The sample sheet (CSV).", show_default=False)] = None,
    recipe: SheetRecipe = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; an earlier run is resumed.")] = None,
    workers: Workers = None,
    memory: Annotated[
        float | None, typer.Option("--memory", min=0.001, help="GB for all processes; most of the machine's.")
    ] = None,
    block_timeout: Annotated[
        float | None, typer.Option("--block-timeout", min=1, help="Seconds after which a block of tiles hangs.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an earlier run left in the folder.")] = False,
    cluster: Cluster = None,
    slide: Annotated[
        str | None, typer.Option("--slide", help="Only measure this one: for job arrays. Then run without it.")
    ] = None,
    allow_outside: Outside = False,
    repeat: Annotated[
        Path | None, typer.Option("--repeat", help="Do the run in this folder again, into --out (DIR_repeat), compare.")
    ] = None,
    watch: Annotated[
        bool, _watching("--watch", help="Take slides as they finish being written; Ctrl-C ends, the state is kept.")
    ] = False,
    until_idle: Annotated[
        float | None, _watching("--until-idle", min=0, help="End when nothing is new for so many minutes.")
    ] = None,
    # Scanners and network copies write almost without pause; one that pauses longer leaves a file no reader opens yet.
    stable: Annotated[float, _watching("--stable", min=0, help="Seconds a file must rest to count as written.")] = 30.0,
    watch_pattern: Annotated[
        str | None, _watching("--watch-pattern", help="Files to expect, as '*.ome.tif'; those without a row are named.")
    ] = None,
    watch_name: Annotated[
        str | None, _watching("--watch-name", help="Rows from file names, as '{animal}_{group}_{section}.ome.tif'.")
    ] = None,
    quiet: Quiet = False,
    log: Log = None,
    json_: Json = False,
) -> None:
    """Analyse a study. Exit code 0 done, 1 some slides failed, 2 the input is wrong, 130 interrupted."""
    from histoquant.cluster import Limits

    tell = Printer(quiet or json_, log)
    settings: dict[str, Any] = {"workers": workers, "limits": Limits(memory, block_timeout)}
    if cluster is not None:
        from histoquant.inputs import read_profile

        for name in [name for name, value in (("--workers", workers), ("--memory", memory)) if value is not None]:
            raise InputError(f"{name} does not go with --cluster.", f"State it in {cluster.name}.")
        settings["profile"] = read_profile(cluster)
    watching = {
        "--until-idle": until_idle,
        "--watch-pattern": watch_pattern,
        "--watch-name": watch_name,
    }
    for name in [name for name, value in watching.items() if value is not None and not watch]:
        raise InputError(f"{name} says how to watch.", "Give --watch too.")
    if repeat is not None:
        given: dict[str, Any] = {"STUDY": study, "--recipe": recipe, "--cluster": cluster, "--slide": slide}
        given |= {"--fresh": fresh or None, "--watch": watch or None}
        for name in [name for name, value in given.items() if value is not None]:
            raise InputError(f"{name} does not go with --repeat, which takes all from the run.", "Leave it out.")
        _repeat(repeat, out or repeat.with_name(f"{repeat.resolve().name}_repeat"), settings, tell, json_)
        return
    for name in [name for name, value in {"STUDY": study, "--out": out}.items() if value is None]:
        raise InputError(f"run needs {name}.", f"For example: {EXAMPLE}")
    assert study is not None
    assert out is not None
    _needs_recipe(study, recipe, "run")
    if slide is not None:
        for name in [name for name, value in (("--fresh", fresh), ("--watch", watch)) if value]:
            raise InputError(f"{name} does not go with --slide.", "Leave it out.")
        if recipe is None:
            raise InputError("--slide measures a slide of one assay.", "Give its recipe.")
        _measure((study, recipe, allow_outside), slide, out, settings, tell)
        return
    settings |= {"fresh": fresh}
    if recipe is None:
        if watch:
            raise InputError("--watch takes slides of one assay.", "Give its recipe, and a sheet of its slides.")
        from histoquant.assays import run_assays
        from histoquant.inputs import load_assays

        assays = load_assays(study, allow_outside=allow_outside)
        with tell.progress("run") as show:
            outcome = run_assays(assays, out, command=sys.argv, progress=show, **settings)
    elif watch:
        from histoquant.watch import Watch, follow

        watched = Watch(
            study,
            recipe,
            allow_outside=allow_outside,
            pattern=watch_pattern,
            template=watch_name,
            stable_s=stable,
            tell=tell,
        )

        def batch(checked: Checked) -> Outcome:
            outcome = _analyse(checked, out, settings, tell)
            settings["fresh"] = False  # the first batch forgets what an earlier run left, not each one
            return outcome

        outcome = follow(watched, batch, until_idle_s=None if until_idle is None else 60 * until_idle)
    else:
        from histoquant.inputs import load

        checked = load(study, recipe, allow_outside=allow_outside, kinds=("cells", "spines"))
        outcome = _analyse(checked, out, settings, tell)
    if json_:
        failures = [vars(failure) for failure in outcome.failures]
        print(json.dumps({"out": str(out), "failures": failures, "notes": outcome.notes}, indent=2))
    _report(outcome, tell)


def _needs_recipe(study: Path, recipe: Path | None, command: str) -> None:
    """Refuse a study whose recipe nobody names: neither the command nor a column of its sheet."""
    from histoquant.inputs import names_recipes

    if recipe is None and not names_recipes(study):
        raise InputError(
            f"{command} needs --recipe.", f"For example: {EXAMPLE} (or name one for each row in a column 'recipe')."
        )


def _measure(files: tuple[Path, Path, bool], slide: str, out: Path, settings: dict[str, Any], tell: Printer) -> None:
    """Measure one slide of a study, and leave with 0, or with 1 when it failed."""
    from histoquant.inputs import load
    from histoquant.means import Means
    from histoquant.slidetask import measure_slide

    study, recipe, allow_outside = files
    checked = load(study, recipe, allow_outside=allow_outside)
    with tell.progress(slide) as show:
        failures = measure_slide(checked, slide, out, Means(**settings), command=sys.argv, progress=show)
    for failure in failures:
        print(f"{failure.slide} ({failure.stage}): {failure.error} {failure.remedy}", file=sys.stderr)
    if failures:
        raise typer.Exit(1)
    tell(f"{slide} is measured.")


def _analyse(checked: Checked, out: Path, settings: dict[str, Any], tell: Printer) -> Outcome:
    if checked.recipe.kind == "spines":
        if settings.get("profile") is not None:
            raise InputError("Stacks of dendrites are analysed on this machine.", "Leave --cluster out.")
        from histoquant.spine_study import run_spines

        given = {name: settings[name] for name in ("workers", "fresh")}
        with tell.progress("run") as show:
            return run_spines(checked, out, command=sys.argv, progress=show, **given)
    from histoquant.batch import run_study

    with tell.progress("run") as show:
        return run_study(checked, out, command=sys.argv, progress=show, **settings)


def _repeat(root: Path, out: Path, settings: dict[str, Any], tell: Printer, json_: bool) -> None:
    """Repeat a run, say what differs, and leave with 0 (nothing), 1 (something) or 2 (it cannot be repeated)."""
    from histoquant.repeat import repeat_run

    with tell.progress("repeat") as show:
        found = repeat_run(root, out, command=sys.argv, progress=show, **settings)
    if json_:
        print(json.dumps({"out": str(out), "identical": not found.differences} | found.as_dict(), indent=2))
    for line in found.versions:
        tell(f"version: {line}")
    for line in found.differences:
        tell(f"DIFFERS: {line}")
    same = len(found.compared) - len(found.differences)
    tell(f"{same} of {len(found.compared)} files of tables, cells and labels are the same to the byte.")
    tell(f"Repeat:   {out}")
    raise typer.Exit(1 if found.differences else 0)


def _report(outcome: Outcome, tell: Printer) -> None:
    """Say where the results are, list what failed, and leave with the right code."""
    for note in outcome.notes:
        tell(f"note: {note}")
    failed = {failure.slide for failure in outcome.failures}
    for failure in outcome.failures:
        print(f"{failure.slide} ({failure.stage}): {failure.error} {failure.remedy}", file=sys.stderr)
    tell(f"{outcome.n_slides - len(failed)} of {outcome.n_slides} slide(s) done.")
    if len(failed) == outcome.n_slides:
        raise typer.Exit(2 if all(failure.stage == "check" for failure in outcome.failures) else 1)
    tell(f"Report:   {outcome.root / 'report.html'}")
    runs = outcome.root / "assays" / "*" if (outcome.root / "assays").is_dir() else outcome.root
    named = [path.name for path in sorted((outcome.root / "tables").glob("*groups.csv"))]
    tell(f"Groups:   {runs / 'tables' / (named[0] if named else '*groups.csv')}")
    tell(f"Effects:  {outcome.root / 'tables' / 'statistics.csv'}")
    tell(f"Pictures: {runs / 'slides' / '*' / 'overview.png'}")
    if failed:
        raise typer.Exit(1)
