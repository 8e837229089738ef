"""The commands of one image, and the making of images whose truth is known: segment, score, seamcheck, phantom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from histoquant.cli.app import Json, Quiet, Recipe, Workers, app
from histoquant.console import Printer
from histoquant.errors import InputError


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


@app.command(epilog="Example:  histoquant phantom sections --assay tunel --animals 3 --seed 1")
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    assay: Annotated[
        str,
        typer.Option("--assay", "-a", help="tunel, brdu, dcx, ihc, nuclei, spines, golgi, ttc, or study (of three)."),
    ],
    size_mm: Annotated[
        tuple[float, float] | None, typer.Option("--size-mm", help="Height and width of each section.")
    ] = None,
    pixel_size_um: Annotated[float | None, typer.Option("--pixel-size-um", help="Pixel size.")] = None,
    animals: Annotated[int | None, typer.Option("--animals", min=1, help="Animals per group.")] = None,
    density_per_mm2: Annotated[float | None, typer.Option("--density-per-mm2", help="Nuclei per mm2.")] = None,
    diameter_um: Annotated[float | None, typer.Option("--diameter-um", help="Mean nuclear diameter.")] = None,
    z_step_um: Annotated[float | None, typer.Option("--z-step-um", help="Of spines and golgi.")] = None,
    sections: Annotated[int | None, typer.Option("--sections", min=1, help="Sections per animal.")] = None,
    effect: Annotated[float | None, typer.Option("--effect", help="True relative change, -0.5 = half.")] = None,
    control: Annotated[list[str] | None, typer.Option("--control", help="Staining control, one section each.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same bytes.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Make a synthetic study whose truth is known."""
    from histoquant import phantom as made
    from histoquant.batch import Progress

    stated: dict[str, Any] = {
        "size_mm": size_mm,
        "pixel_size_um": pixel_size_um,
        "z_step_um": z_step_um,
        "animals": animals,
        "density_per_mm2": density_per_mm2,
        "diameter_um": diameter_um,
        "sections": sections,
        "effect": effect,
        "controls": tuple(control) if control else None,
    }
    given = {name: value for name, value in stated.items() if value is not None} | {"seed": seed}
    plan: type[made.PhantomPlan | made.DendritePlan | made.TtcPlan | made.JointPlan] = made.PhantomPlan
    if assay in ("ttc", "study"):
        plan = made.TtcPlan if assay == "ttc" else made.JointPlan
    else:
        given["assay"] = assay
    if assay in ("spines", "golgi"):
        plan = made.DendritePlan
        if size_mm is not None:
            given["size_um"] = tuple(1000 * side for side in given.pop("size_mm"))
    if foreign := sorted(set(given) - set(plan.__dataclass_fields__)):
        raise InputError(f"The phantom of {assay} has no {', '.join(foreign)}.", "Leave that option out.")

    tell = Printer(quiet, None)
    with tell.progress("phantom") as show:

        def done(part: float) -> None:
            show(Progress(round(100 * part), 100, f"{part:.0%}"))

        planned = plan(**given)
        if isinstance(planned, made.JointPlan):
            study, command = made.make_joint_phantom(out, planned, progress=done), "run"
        elif isinstance(planned, made.TtcPlan):
            study, command = made.make_ttc_phantom(out, planned, progress=done), "infarct"
        elif isinstance(planned, made.DendritePlan):
            study, command = made.make_dendrites(out, planned, progress=done), "spines"
        else:
            study, command = made.make_phantom(out, planned, progress=done), "run"
    what = sorted((out / "slides").iterdir())[0] if command == "spines" else study
    run_folder = out.with_name(out.name + "_run")
    recipe = "" if assay == "study" else f" --recipe {study.with_name('recipe.toml')}"
    tell(f"histoquant {command} {what}{recipe} --out {run_folder}")
