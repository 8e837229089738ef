"""The command line: thin; every command calls one function and prints what it gave."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from histoquant import __version__
from histoquant.console import Printer
from histoquant.errors import Faults, HistoquantError, InputError

if TYPE_CHECKING:
    from histoquant.batch import Outcome
    from histoquant.inputs import Checked

app = typer.Typer(
    name="histoquant",
    help="From a folder of microscope slides to counts per region, section, animal and group.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# The base of every error about the command's own words. Typer brings click along under a name that changed between its
# versions; this is the same class in all of them.
_CommandError: Any = typer.BadParameter.__mro__[2]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Log = Annotated[Path | None, typer.Option("--log", help="Also write what is printed to this file.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Recipe = Annotated[Path, typer.Option("--recipe", "-r", help="The recipe (TOML).")]
Workers = Annotated[
    int | None, typer.Option("--workers", "-w", min=1, help="Processes; as many as there are cores when not given.")
]
Outside = Annotated[
    bool, typer.Option("--allow-outside", help="Allow relative paths in the sheet that leave its folder.")
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


@app.command(epilog="Example:  histoquant check study.csv --recipe recipe.toml")
def check(
    study: Annotated[Path, typer.Argument(help="The sample sheet (CSV).")],
    recipe: Recipe,
    allow_outside: Outside = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Open everything, compute nothing, and print all faults at once. Exit code 0 or 2."""
    from histoquant.batch import check_study
    from histoquant.inputs import load

    checked = load(study, recipe, allow_outside=allow_outside)
    sound, failures = check_study(checked)
    tell = Printer(quiet, None)
    if json_:
        print(json.dumps({"sound": sound, "faults": [vars(failure) for failure in failures]}, indent=2))
    for failure in () if json_ else failures:
        print(f"{failure.slide}: {failure.error} {failure.remedy}", file=sys.stderr)
    n_slides = len(checked.study.included)
    if not json_:
        tell(f"{len(sound)} of {n_slides} slide(s) can be analysed; {len(failures)} fault(s).")
    raise typer.Exit(2 if failures else 0)


@app.command(
    epilog="Example:  histoquant run study.csv --recipe recipe.toml --out results --workers 2\n\n"
    "A scanner's folder:  histoquant run study.csv -r recipe.toml -o results --watch --until-idle 60\n\n"
    "The same again:  histoquant run --repeat results --out results_again"
)
def run(
    study: Annotated[Path | None, typer.Argument(help="The sample sheet (CSV).", show_default=False)] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", "-r", help="The recipe (TOML).")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; an earlier run is resumed.")] = None,
    workers: Workers = None,
    memory: Annotated[
        float | None, typer.Option("--memory", min=0.001, help="GB for all processes; most of the machine's.")
    ] = None,
    block_timeout: Annotated[
        float | None, typer.Option("--block-timeout", min=1, help="Seconds after which a block of tiles hangs.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an earlier run left in the folder.")] = False,
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
    watching = {
        "--until-idle": until_idle,
        "--watch-pattern": watch_pattern,
        "--watch-name": watch_name,
    }
    for name in [name for name, value in watching.items() if value is not None and not watch]:
        raise InputError(f"{name} says how to watch.", "Give --watch too.")
    if repeat is not None:
        given = {"STUDY": study, "--recipe": recipe, "--fresh": fresh or None, "--watch": watch or None}
        for name in [name for name, value in given.items() if value is not None]:
            raise InputError(f"{name} does not go with --repeat, which takes all from the run.", "Leave it out.")
        _repeat(repeat, out or repeat.with_name(f"{repeat.resolve().name}_repeat"), settings, tell, json_)
        return
    needed = {"STUDY": study, "--recipe": recipe, "--out": out}
    for name in [name for name, value in needed.items() if value is None]:
        raise InputError(
            f"run needs {name}.", "For example: histoquant run study.csv --recipe recipe.toml --out results"
        )
    assert study is not None
    assert recipe is not None
    assert out is not None
    settings |= {"fresh": fresh}
    if watch:
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

        outcome = _analyse(load(study, recipe, allow_outside=allow_outside), out, settings, tell)
    if json_:
        failures = [vars(failure) for failure in outcome.failures]
        print(json.dumps({"out": str(out), "failures": failures, "notes": outcome.notes}, indent=2))
    _report(outcome, tell)


def _analyse(checked: Checked, out: Path, settings: dict[str, Any], tell: Printer) -> Outcome:
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


@app.command(
    epilog="Example:  histoquant status results\n\nEvery minute, for a script:  histoquant status results --json"
)
def status(
    folder: Annotated[Path, typer.Argument(help="Folder given to run as --out.")],
    json_: Json = False,
) -> None:
    """Say how a run stands, while it goes on and after it ended or died. Writes nothing. Exit code 0 or 2."""
    from histoquant.status import lines, read_status

    found = read_status(folder)
    if json_:
        print(json.dumps(found.as_dict(), indent=2))
        return
    for line in lines(found):
        print(line)


@app.command(epilog="Example:  histoquant seamcheck slide.ome.tif --recipe recipe.toml --workers 2")
def seamcheck(
    slide: Annotated[Path, typer.Argument(help="Slide of any size and format histoquant reads.")],
    recipe: Recipe,
    pixel_size_um: Annotated[float | None, typer.Option("--pixel-size-um", help="When the file does not say.")] = None,
    scene: Annotated[str | None, typer.Option("--scene", help="Which scene of a many-scene file.")] = None,
    shift: Annotated[
        tuple[int, int] | None, typer.Option("--shift", help="How far the grid is moved, y and x in px; half a tile.")
    ] = None,
    workers: Workers = None,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Analyse a slide on two tile grids and list the objects that differ. Exit code 0 equal, 1 different, 2 input."""
    from histoquant.seamcheck import report_lines, seamcheck

    tell = Printer(quiet or json_, None)
    with tell.progress("seamcheck") as show:
        found = seamcheck(
            slide, recipe, pixel_size_um=pixel_size_um, scene=scene, shift_px=shift, workers=workers, progress=show
        )
    if json_:
        print(json.dumps(found.as_dict(), indent=2))
    for line in report_lines(found):
        tell(line)
    raise typer.Exit(0 if found.equal else 1)


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
    tell(f"Groups:   {outcome.root / 'tables' / 'groups.csv'}")
    tell(f"Pictures: {outcome.root / 'slides' / '*' / 'overview.png'}")
    if failed:
        raise typer.Exit(1)


@app.command(epilog="Example:  histoquant segment a.ome.tif --out labels.tif --channel DAPI --param diameter_um=8")
def segment(
    image: Annotated[Path, typer.Argument(help="Image of any size and format histoquant reads.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Label image to write (OME-TIFF, uint32).")],
    channel: Annotated[
        str | None,
        typer.Option(
            "--channel", "-c", help="Channel with the nuclei: name or number (0); of RGB slides a stain (hematoxylin)."
        ),
    ] = None,
    segmenter: Annotated[str | None, typer.Option("--segmenter", "-s", help="Name of an installed segmenter.")] = None,
    pixel_size_um: Annotated[float | None, typer.Option("--pixel-size-um", help="When the file does not say.")] = None,
    param: Annotated[list[str] | None, typer.Option("--param", "-p", help="K=V, of segment or tiles.")] = None,
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, help="Processes.")] = 1,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Find the nuclei of one image."""
    from histoquant.single import segment_image

    tell = Printer(quiet or json_, None)
    settings = dict(_parameter(text) for text in param or ())
    if segmenter is not None:
        settings["segmenter"] = segmenter
    with tell.progress("segment") as show:
        found = segment_image(
            image, out, channel=channel, pixel_size_um=pixel_size_um, settings=settings, workers=workers, progress=show
        )
    if json_:
        print(json.dumps(found, indent=2))
        return
    for note in found["notes"]:
        tell(f"note: {note}")
    tell(f"{found['n_nuclei']:,} nuclei in {out}")


def _parameter(text: str) -> tuple[str, Any]:
    """Return key and value of ``K=V``; the value as TOML would read it, else as text."""
    import tomllib

    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--param '{text}' is not K=V.", "Write for example --param diameter_um=8.")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


@app.command(epilog="Example:  histoquant score labels.tif truth.png --iou 0.5 --iou 0.75 --json")
def score(
    labels: Annotated[Path, typer.Argument(help="Label image, or a folder of them.")],
    truth: Annotated[Path, typer.Argument(help="True label image, or a folder; files pair by name.")],
    iou: Annotated[list[float] | None, typer.Option("--iou", help="Overlap at which two objects match; 0.5.")] = None,
    json_: Json = False,
) -> None:
    """Compare label images with the truth: precision, recall, F1, AP, panoptic quality."""
    from histoquant.single import score_files

    result = score_files(labels, truth, iou=tuple(iou or (0.5,)))
    if json_:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['n_images']} image(s)")
    for kind in ("pooled", "per_image_mean"):
        for row in result[kind]:
            numbers = "  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
            print(f"{kind.replace('_', ' ')}:  {numbers}")


@app.command(epilog="Example:  histoquant phantom sections --assay tunel --animals 3 --seed 1")
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    assay: Annotated[str, typer.Option("--assay", "-a", help="tunel, brdu, dcx or nuclei.")],
    size_mm: Annotated[
        tuple[float, float] | None, typer.Option("--size-mm", help="Height and width of each section.")
    ] = None,
    pixel_size_um: Annotated[float | None, typer.Option("--pixel-size-um", help="Pixel size.")] = None,
    animals: Annotated[int | None, typer.Option("--animals", min=1, help="Animals per group.")] = None,
    density_per_mm2: Annotated[float | None, typer.Option("--density-per-mm2", help="Nuclei per mm2.")] = None,
    diameter_um: Annotated[float | None, typer.Option("--diameter-um", help="Mean nuclear diameter.")] = None,
    sections: Annotated[int | None, typer.Option("--sections", min=1, help="Sections per animal.")] = None,
    effect: Annotated[float | None, typer.Option("--effect", help="True relative change, -0.5 = half.")] = None,
    control: Annotated[list[str] | None, typer.Option("--control", help="Staining control, one section each.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same bytes.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Make a synthetic study whose truth is known."""
    from histoquant.batch import Progress
    from histoquant.phantom import PhantomPlan, make_phantom

    stated: dict[str, Any] = {
        "size_mm": size_mm,
        "pixel_size_um": pixel_size_um,
        "animals": animals,
        "density_per_mm2": density_per_mm2,
        "diameter_um": diameter_um,
        "sections": sections,
        "effect": effect,
        "controls": tuple(control) if control else None,
    }
    plan = PhantomPlan(assay=assay, seed=seed, **{name: value for name, value in stated.items() if value is not None})
    tell = Printer(quiet, None)
    with tell.progress("phantom") as show:
        study = make_phantom(out, plan, progress=lambda part: show(Progress(round(100 * part), 100, f"{part:.0%}")))
    tell(f"histoquant run {study} --recipe {study.with_name('recipe.toml')} --out {out.with_name(out.name + '_run')}")


@app.command(epilog="Example:  histoquant report results")
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    quiet: Quiet = False,
) -> None:
    """Write the HTML report of a finished run again."""
    from histoquant.batch import write_report

    Printer(quiet, None)(f"Report:   {write_report(folder)}")


@app.command(epilog="Example:  histoquant plugins")
def plugins(json_: Json = False) -> None:
    """List readers, segmenters and positivity rules, what is not installed and what is broken. Exit code 0 or 2."""
    from histoquant.registry import list_plugins

    found = list_plugins(load=True)
    if json_:
        print(json.dumps([vars(plugin) for plugin in found], indent=2))
    for plugin in () if json_ else found:
        state = f"not installed: {plugin.missing}" if plugin.missing else "ok"
        state = f"BROKEN: {plugin.error}" if plugin.error else state
        print(f"{plugin.kind:<10} {plugin.name:<14} {plugin.distribution} {plugin.version}  {state}")
    raise typer.Exit(2 if any(plugin.error for plugin in found) else 0)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"histoquant {__version__}")
        raise typer.Exit


def main() -> NoReturn:
    """Run the command line; errors of the user's input are one sentence each, never a traceback."""
    try:
        code = app(standalone_mode=False)
    except HistoquantError as error:
        for fault in error.faults if isinstance(error, Faults) else (error,):
            print(f"histoquant: {fault}", file=sys.stderr)
        code = 2
    except typer.Abort:  # what some versions of typer make of Ctrl-C; others return 130
        code = 130
    except _CommandError as error:
        error.show()
        code = 2
    if code == 130:
        print("histoquant: interrupted; what is finished is kept, the same command goes on.", file=sys.stderr)
    sys.exit(code or 0)
