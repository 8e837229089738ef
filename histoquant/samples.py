"""The sample study: the one that lies in the source folder, or the same one made afresh."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from histoquant.phantom import SAMPLE_PLAN, make_phantom


def sample_study(made: Path, tell: Callable[[str], None]) -> Path:
    """Return the sample sheet of the sample study.

    Parameters
    ----------
    made : Path
        Folder to make the study in when histoquant was installed without its source folder.
    """
    shipped = Path(__file__).parents[1] / "sample_images" / "study.csv"
    if shipped.is_file():
        return shipped
    if not (made / "study.csv").is_file():
        tell(f"Making the sample study in {made}")
        make_phantom(made, SAMPLE_PLAN)
    return made / "study.csv"
