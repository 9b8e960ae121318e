"""A machine as data: array, memory levels, energies per access, the zeros it can skip. One YAML file each.

The five files beside this module are the public design points of the Sparseloop artifact (Wu et al., MICRO 2022) and a
design for the hybrid pattern of CRISP (arXiv 2311.14272), on one memory hierarchy and one table of energies.
"""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from billhook.errors import InputError

BUILT_IN = ("dense-tc", "nvidia-stc", "flexible-stc", "dstc", "crisp-stc")
"""The machines that come along, the dense one first: it is what speed-ups are over."""

DENSE = BUILT_IN[0]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Energy = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MetadataArray(_Part):
    """A small array beside a level's data that holds positions; it is filled through the data port, as data are.

    Attributes:
        capacity_bits: Bits that it holds; None: no bound.
        access_bits: Bits of one read.
        read_pj: Energy of one read.
    """

    capacity_bits: Count | None = None
    access_bits: Count
    read_pj: Energy


class Level(_Part):
    """One level of the memory hierarchy, all of its instances together.

    Attributes:
        capacity: Words that it holds; None: no bound (DRAM).
        access_words: Words that one access moves.
        read_words_per_cycle: Bandwidth, positions that travel with the words included; None: never the limit.
        write_words_per_cycle: The same for writes.
        read_pj: Energy of one access that reads.
        write_pj: Energy of one access that writes.
        metadata: Where positions are read from; None: from the level itself, as words.
    """

    capacity: Count | None = None
    access_words: Count
    read_words_per_cycle: Positive | None = None
    write_words_per_cycle: Positive | None = None
    read_pj: Energy
    write_pj: Energy
    metadata: MetadataArray | None = None

    @property
    def word_read_pj(self) -> float:
        """Energy of reading one word."""
        return self.read_pj / self.access_words

    @property
    def word_write_pj(self) -> float:
        """Energy of writing one word."""
        return self.write_pj / self.access_words

    def bit_read_pj(self, word_bits: int) -> float:
        """Energy of reading one bit of positions."""
        if self.metadata is None:
            return self.word_read_pj / word_bits
        return self.metadata.read_pj / self.metadata.access_bits


class WeightStationary(_Part):
    """Weights stay in the array while activations pass: rows x depth weights meet one column per cycle.

    Attributes:
        rows: Output channels (M) at a time.
        depth: Stored weights of each row (K, zeros left out) at a time.
        columns: Output positions (N) for which the weights stay; their sums wait in the accumulators.
    """

    dataflow: Literal["weight-stationary"]
    rows: Count
    depth: Count
    columns: Count

    @property
    def macs_per_cycle(self) -> int:
        """Of the array."""
        return self.rows * self.depth


class OuterProduct(_Part):
    """Sums stay in the array: per position of K, packed weights times packed activations, side x side at a time.

    Attributes:
        split: Sub-partitions along output channels and along output positions.
        side: Weights, and activations, that a sub-partition multiplies in one cycle.
        tiles: Shapes (channels, positions) of the sums that a sub-partition may hold.
    """

    dataflow: Literal["outer-product"]
    split: tuple[Count, Count]
    side: Count
    tiles: tuple[tuple[Count, Count], ...] = Field(min_length=1)

    @property
    def macs_per_cycle(self) -> int:
        """Of all sub-partitions."""
        return self.split[0] * self.split[1] * self.side**2


class Sparsity(_Part):
    """Which zeros the machine skips.

    Attributes:
        patterns: N:M patterns of the weights; ``any`` for all of them.
        blocks: Whole blocks, equally many in every block row.
        unstructured: Zero weights and zero activations, wherever they are (outer products only).
        offset_bits: Widths that the field of an offset inside an M-group can have; the next one that holds it is taken.
    """

    patterns: tuple[str, ...] = ()
    blocks: bool = False
    unstructured: bool = False
    offset_bits: tuple[Count, ...] = (2, 4, 8, 16)

    @field_validator("patterns", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        """YAML 1.1 reads an unquoted 2:4 as 124, a number of base 60."""
        if not isinstance(value, list | tuple):
            return value
        return tuple("{}:{}".format(*divmod(item, 60)) if type(item) is int else item for item in value)

    @field_validator("patterns")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if text != "any":
                parse_nm(text)
        return value


class Machine(_Part):
    """A whole machine.

    Attributes:
        name: Short, for tables and JSON.
        title: What people call it.
        source: Where its numbers come from.
        word_bits: Bits of a weight, an activation and a stored sum.
        clock_mhz: Turns cycles into time, and nothing else.
        macs_per_cycle: Of all multipliers; must agree with the mapping.
        mac_pj: Energy of one multiply-accumulate.
        dram: Off-chip memory.
        smem: On-chip memory for weights and activations.
        accumulators: Where sums wait.
        operands: Registers at the multipliers.
        mapping: How a matrix product lies on the array.
        sparsity: Which zeros are skipped.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    title: str = ""
    source: str = ""
    word_bits: Count = 8
    clock_mhz: Positive = 1000.0
    macs_per_cycle: Count
    mac_pj: Energy
    dram: Level
    smem: Level
    accumulators: Level
    operands: Level
    mapping: WeightStationary | OuterProduct = Field(discriminator="dataflow")
    sparsity: Sparsity = Sparsity()

    @model_validator(mode="after")
    def _consistent(self) -> Machine:
        made = self.mapping.macs_per_cycle
        if made != self.macs_per_cycle:
            raise ValueError(f"macs_per_cycle: {self.macs_per_cycle}, but the mapping multiplies {made} at a time")
        if self.dram.read_words_per_cycle is None or self.dram.write_words_per_cycle is None:
            side = "read" if self.dram.read_words_per_cycle is None else "write"
            raise ValueError(f"dram.{side}_words_per_cycle: is missing")
        if self.smem.read_words_per_cycle is None:
            raise ValueError("smem.read_words_per_cycle: is missing")
        if isinstance(self.mapping, WeightStationary) == self.sparsity.unstructured:
            raise ValueError("sparsity.unstructured: outer products skip unstructured zeros, stationary weights do not")
        if isinstance(self.mapping, OuterProduct) and (self.sparsity.patterns or self.sparsity.blocks):
            raise ValueError("sparsity.patterns: an outer product knows no patterns, only zeros")
        for level, needed in self.tiles().items():
            held = getattr(self, level).capacity
            if held is not None and held < needed:
                raise ValueError(f"{level}.capacity: {held} words do not hold the {needed} words of its tile")
        return self

    def tiles(self) -> dict[str, int]:
        """Words that each on-chip level must hold for one step of the mapping."""
        mapping = self.mapping
        if isinstance(mapping, WeightStationary):
            weights, passing = mapping.rows * mapping.depth, mapping.depth * mapping.columns
            return {
                "smem": weights + passing,
                "accumulators": mapping.rows * mapping.columns,
                "operands": weights,
            }
        parts = mapping.split[0] * mapping.split[1]
        vectors = max(rows + columns for rows, columns in mapping.tiles)
        return {
            "smem": max(mapping.split[0] * rows + mapping.split[1] * columns for rows, columns in mapping.tiles),
            "accumulators": parts * max(rows * columns for rows, columns in mapping.tiles),
            "operands": parts * vectors,
        }


def parse_nm(text: str) -> tuple[int, int]:
    """``2:4`` as (2, 4).

    Raises:
        ValueError: Not of that form, or N > M.
    """
    n, colon, m = text.partition(":")
    if not colon or not n.strip().isdecimal() or not m.strip().isdecimal() or not 1 <= int(n) <= int(m):
        raise ValueError(f"{text!r} is no N:M pattern, such as 2:4")
    return int(n), int(m)


def read_machine(path: str | Path) -> Machine:
    """A machine from a YAML file.

    Raises:
        InputError: It cannot be read, or makes no sense; names the field.
    """
    try:
        return parse_machine(Path(path).read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read the machine {path}: {what}") from error


def parse_machine(text: str, name: str = "machine") -> Machine:
    """A machine from YAML text.

    Raises:
        InputError: It is no YAML, or makes no sense; names the field.
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark, what = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        where = f"line {mark.line + 1}: " if mark else ""
        raise InputError(f"the machine {name} is not YAML: {where}{what}") from error
    if not isinstance(content, dict):
        raise InputError(f"the machine {name} is not a mapping", "docs/accelerator.md has one to start from")
    try:
        return Machine.model_validate(content)
    except ValidationError as error:
        hint = "docs/accelerator.md says what the fields are"
        raise InputError(f"the machine {name}: {_first(error)}", hint) from error


def _first(error: ValidationError) -> str:
    """The first complaint, with the field's name in front."""
    found = error.errors()[0]
    place = ".".join(str(part) for part in found["loc"] if part not in ("weight-stationary", "outer-product"))
    message = found["msg"].removeprefix("Value error, ")
    given = "" if found["type"] in ("missing", "value_error", "extra_forbidden") else f" (it is {found['input']!r})"
    return f"{place}: {message}{given}" if place else message


def machine_text(name: str) -> str:
    """The YAML of a machine that comes along, to start an own one from.

    Raises:
        InputError: There is none of that name.
    """
    if name not in BUILT_IN:
        raise InputError(f"there is no machine '{name}'", f"choose from: {', '.join(BUILT_IN)}")
    place = resources.files("billhook.accelerator") / "machines" / f"{name}.yaml"
    return place.read_text(encoding="utf-8")


@functools.cache
def built_in(name: str) -> Machine:
    """A machine that comes along.

    Raises:
        InputError: There is none of that name.
    """
    return parse_machine(machine_text(name), name)


def machines(extra: tuple[Machine, ...] = ()) -> tuple[Machine, ...]:
    """The five that come along and further ones; one of the same name takes the place of ours.

    Raises:
        InputError: Two further ones have one name.
    """
    names = [machine.name for machine in extra]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two machines are called '{twice}'", "give each a name of its own")
    own = {machine.name: machine for machine in extra}
    base = [own.pop(name) if name in own else built_in(name) for name in BUILT_IN]
    return (*base, *own.values())
