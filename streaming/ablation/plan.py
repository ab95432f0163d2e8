"""What is compared with what: the paper's three ablations, with more variants and measures, and its own figures."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, final

TableName: TypeAlias = Literal["short-term", "long-term", "blending"]
"""The paper's three ablations."""

SHORT, LONG = "cam+inject", "apm"
"""The memories of the whole method, where an ablation is about something else."""


@final
@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way of making the videos."""

    name: str
    """In the table."""
    short: str = SHORT
    """Registered name of the short-term memory."""
    long: str = "none"
    """Registered name of the long-term memory."""
    blender: str | None = None
    """Registered name of the enhancement's blender; None: no enhancement."""
    causal: bool = False
    """Whether chunks are enhanced one after the other."""
    enlarged: bool = False
    """Whether the video is only scaled up to the enhancement's size, for comparison."""
    paper: str = "–"
    """The paper's figure, as it is printed there."""

    @property
    def file(self) -> str:
        """Name of its results; variants of several tables that make the same videos share them."""
        memories = f"{self.short}_{self.long}"
        return f"{memories}_{self.name}" if self.enlarged or self.blender is not None else memories


@final
@dataclass(frozen=True)
class Wanted:
    """A claim: one variant has the better mean of a number."""

    number: str
    """Its name."""
    better: str
    """The variant with the better mean."""
    worse: str
    """The other one."""


@final
@dataclass(frozen=True, kw_only=True)
class Table:
    """One ablation."""

    name: TableName
    """As `--table` knows it."""
    title: str
    """What is left out or replaced."""
    variants: tuple[Variant, ...]
    """Weakest first."""
    numbers: tuple[str, ...]
    """Shown, in this order."""
    paper: str
    """What the paper measured."""
    wanted: tuple[Wanted, ...]
    """Our claims: what we expect of our numbers if the paper's order holds."""


def _in_order(numbers: tuple[str, ...], *pairs: tuple[str, str]) -> tuple[Wanted, ...]:
    """The same claims for several numbers; pairs: (better, worse)."""
    return tuple(Wanted(number, better, worse) for number in numbers for better, worse in pairs)


TABLES: tuple[Table, ...] = (
    Table(
        name="short-term",
        title="Short-term memory (no long-term memory)",
        variants=(
            Variant(name="none", short="none"),
            Variant(name="inject", short="inject"),
            Variant(name="conc-cond", short="conc-cond", paper="0.24"),
            Variant(name="add-cond", short="add-cond", paper="0.284"),
            Variant(name="cam", short="cam", paper="0.03"),
            Variant(name="cam+inject", short="cam+inject"),
        ),
        numbers=(
            "scuts_min1", "seam_ratio", "seam_departure", "object_jump_ratio", "object_jump_departure",
            "object_jump_border", "object_found",
        ),
        paper="SCuts ↓",
        wanted=_in_order(
            ("scuts_min1", "seam_departure", "object_jump_departure"),
            ("cam", "add-cond"), ("cam", "conc-cond"), ("add-cond", "none"), ("conc-cond", "none"),
        ),
    ),
    Table(
        name="long-term",
        title=f"Long-term memory (with {SHORT})",
        variants=(
            Variant(name="none", paper="0.192 (93.42)"),
            Variant(name="append", long="append"),
            Variant(name="apm", long="apm", paper="0.151 (94.95)"),
        ),
        numbers=(
            "anchor_distance", "anchor_distance_end", "anchor_lpips", "pattern_kept", "pattern_kept_chance",
            "object_colour_drift", "scuts_min1",
        ),
        paper="LPIPS to the first frame ↓ (face re-identification ↑)",
        wanted=_in_order(
            ("anchor_distance", "anchor_lpips", "pattern_kept", "object_colour_drift"),
            ("apm", "none"), ("apm", "append")
        ),
    ),
    Table(
        name="blending",
        title=f"Blending of the enhancement's chunks (of videos with {SHORT} and {LONG})",
        variants=(
            Variant(name="enlarged", enlarged=True, long=LONG),
            Variant(name="naive", blender="naive", paper="8.72", long=LONG),
            Variant(name="shared-noise", blender="shared-noise", paper="6.01", long=LONG),
            Variant(name="cross-fade", blender="cross-fade", long=LONG),
            Variant(name="randomized", blender="randomized", paper="3.32", long=LONG),
            Variant(name="randomized-official", blender="randomized-official", long=LONG),
            Variant(name="causal", blender="randomized", causal=True, long=LONG),
        ),
        numbers=("flow_std_joins", "flow_std", "seam_ratio", "seam_departure", "scuts_min1"),
        paper="std of the flow magnitude ↓",
        wanted=_in_order(("flow_std_joins",), ("shared-noise", "naive"), ("randomized", "shared-noise")),
    ),
)  # fmt: skip
"""In the paper's order."""
