"""What a recipe says about infarct volumes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Formula = Literal["indirect", "ratio", "direct"]
"""How areas become a volume, see `histoquant.analysis.infarct`."""


class InfarctSettings(BaseModel):
    """How slices are found in a picture, divided, and added up to a volume."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slice_thickness_um: float = Field(
        gt=0,
        le=20_000,
        title="Slice thickness (um)",
        description="Distance from one slice to the next: 2000 in most rat protocols, 1000 in mice. Never assumed.",
    )
    stain: Literal["ttc", "outlines"] = Field(
        "ttc",
        title="Stain",
        description="'ttc' tells red from pale tissue in the picture; 'outlines' takes lesions as they were drawn "
        "(Nissl, H&E, MAP2), one section per slide.",
    )
    primary: Formula = Field(
        "indirect",
        title="Primary formula",
        description="Which volume the study declares; all three are reported.",
    )
    pale_below: float = Field(
        0.5,
        gt=0,
        lt=1,
        title="Pale below",
        description="Tissue is pale when less than this part of the redness of the other hemisphere is left.",
    )
    white: tuple[float, float, float] | None = Field(
        None,
        title="White",
        description="Red, green and blue of a grey or white card under the same light; taken from the ground the "
        "slices lie on when it is grey, and not balanced otherwise, when not given.",
    )
    order: Literal["rows", "columns"] = Field(
        "rows", title="Order", description="How slices follow each other in a picture: row by row or column by column."
    )
    min_slice_mm2: float = Field(
        12.0, gt=0, title="Smallest slice (mm2)", description="Smaller pieces are crumbs, not slices."
    )
    min_lesion_mm2: float = Field(
        0.3, ge=0, title="Smallest lesion (mm2)", description="Smaller pale spots are specks, not infarct."
    )
    mirror_um: float = Field(
        500.0,
        ge=0,
        le=5000,
        title="Mirror tolerance (um)",
        description="Pale tissue whose mirror image, to within this distance, is pale too is white matter.",
    )
