"""A phantom study of several assays on the same animals: TUNEL and BrdU sections, and TTC slices without an effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from histoquant.errors import InputError
from histoquant.model.study import RECIPE
from histoquant.phantom.plan import PhantomPlan
from histoquant.phantom.study import make_phantom, refused, shipped_recipe
from histoquant.phantom.ttc import TtcPlan, make_ttc_phantom

if TYPE_CHECKING:
    import pandas as pd

TTC_PIXEL_UM = 80.0
DECLARED = {"brdu": '\n[statistics]\nprimary = { marker = "brdu", region = "svz" }\n'}
"""What is added to shipped recipes: the endpoint that the study is made for, where the recipe leaves it open."""


@dataclass(frozen=True)
class JointPlan:
    """A phantom study of three assays.

    True effects of the higher dose: TUNEL in the boundary zone -50 %, BrdU in the subventricular zone +60 %, infarct
    volume none. The lower dose has half of them.

    Parameters
    ----------
    animals : int
        Per group; the groups are "vehicle", "low" and "high".
    sections : int
        Of TUNEL and of BrdU, per animal.
    size_mm, pixel_size_um
        Of these sections.
    seed : int
        Same plan, same bytes.

    Raises
    ------
    InputError
        If the plan cannot be carried out.
    """

    animals: int = 8
    sections: int = 1
    size_mm: tuple[float, float] = (1.55, 1.55)
    pixel_size_um: float = 0.65
    seed: int = 0

    def __post_init__(self) -> None:
        self.ttc()  # each says what is out of bounds
        for assay in ("tunel", "brdu"):
            self.sections_of(assay)

    @property
    def doses(self) -> tuple[float, float]:
        """Of the two treated groups."""
        return 0.5, 1.0

    def sections_of(self, assay: str) -> PhantomPlan:
        """Return the plan of the sections of an assay."""
        return PhantomPlan(
            assay,
            size_mm=self.size_mm,
            pixel_size_um=self.pixel_size_um,
            animals=self.animals,
            sections=self.sections,
            doses=self.doses,
            seed=self.seed,
        )

    def ttc(self) -> TtcPlan:
        """Return the plan of the slices."""
        return TtcPlan(animals=self.animals, pixel_size_um=TTC_PIXEL_UM, doses=self.doses, effect=0.0, seed=self.seed)


def make_joint_phantom(out: Path, plan: JointPlan, *, progress: Callable[[float], None] | None = None) -> Path:
    """Make a study of several assays that ``histoquant run OUT/study.csv --out DIR`` takes as it is.

    Writes a phantom of each assay into a folder of its own (``tunel``, ``brdu``, ``ttc``), their recipes beside them,
    ``study.csv`` with all their rows, last of all, and ``truth/effects.csv``: what the slides truly hold.

    Returns
    -------
    Path
        Of ``study.csv``.

    Raises
    ------
    InputError
        If the folder holds a study already.
    StoreError
        If the folder cannot be written.
    """
    import pandas as pd

    out = Path(out)
    sheet = out / "study.csv"
    if sheet.exists():
        raise InputError(f"{out}: there is a study already.", "Give another folder, or remove that study first.")
    told = progress or (lambda share: None)
    rows, effects = [], []
    for number, (assay, recipe) in enumerate({"tunel": "tunel", "brdu": "brdu_dcx", "ttc": "ttc"}.items()):

        def part(share: float, number: int = number) -> None:
            told((number + share) / 3)

        if assay == "ttc":
            make_ttc_phantom(out / assay, plan.ttc(), progress=part)
        else:
            make_phantom(out / assay, plan.sections_of(assay), progress=part)
        try:
            text = shipped_recipe(recipe).read_text("utf-8") + DECLARED.get(assay, "")
            (out / f"{assay}.toml").write_text(text, "utf-8")
        except OSError as error:
            raise refused(out, error) from error
        rows.append(_rows(out / assay / "study.csv", assay))
        effects.append(_infarct_effects(out / assay) if assay == "ttc" else _section_effects(out / assay))
    try:
        (out / "truth").mkdir(exist_ok=True)
        pd.concat(effects).round(4).to_csv(out / "truth" / "effects.csv", index=False, lineterminator="\n")
        pd.concat(rows).to_csv(sheet, index=False, lineterminator="\n")
    except OSError as error:
        raise refused(out, error) from error
    return sheet


def _rows(sheet: Path, assay: str) -> pd.DataFrame:
    """Return the rows of an assay's sheet as they stand in that of the study; animals are the same in all assays."""
    import pandas as pd

    rows = pd.read_csv(sheet, dtype=str, keep_default_na=False)
    for column in ("slide", "regions"):
        if column in rows:
            rows[column] = rows[column].where(rows[column] == "", assay + "/" + rows[column])
    rows["animal"] = rows["animal"].str.replace(r"^R(?=\d)", "M", regex=True)
    # Controls of an assay are no animals of the study.
    rows["animal"] = rows["animal"].str.replace(r"^control", f"{assay}_control", regex=True)
    return rows.assign(**{RECIPE: f"{assay}.toml"})


def _section_effects(folder: Path) -> pd.DataFrame:
    import pandas as pd

    told = pd.read_csv(folder / "truth" / "effects.csv")
    told = told.assign(assay=folder.name, endpoint=told["marker"] + "_density_per_mm2")
    return told[["assay", "endpoint", "region", "group", "percent_change"]].dropna()


def _infarct_effects(folder: Path) -> pd.DataFrame:
    import pandas as pd

    means = pd.read_csv(folder / "truth" / "infarct.csv").groupby("group", sort=False)["indirect_mm3"].mean()
    change = 100 * (means / means.iloc[0] - 1)
    about = {"assay": folder.name, "endpoint": "infarct_indirect_mm3", "region": "brain"}
    return pd.DataFrame(about | {"group": change.index[1:], "percent_change": change.to_numpy()[1:]})
