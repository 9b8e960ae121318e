"""Names for head outputs: the label map, and which outputs a user asks to keep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from billhook.data.source import Source
from billhook.errors import InputError, UsageError, nearest

LABELS_HINT = 'a label file is a JSON list, one entry per head output: "name" or ["id", "name"]'


@dataclass(frozen=True)
class LabelMap:
    """How a data set's classes lie on a head's outputs.

    Attributes:
        names: One per head output.
        ids: A second name per head output, where there is one.
        outputs: Per class of the data, its head output; None where the head has none.
    """

    names: tuple[str, ...]
    ids: tuple[str, ...] | None
    outputs: tuple[int | None, ...]


def parse_classes(text: str) -> list[str]:
    """The classes of a flag: ``a,b,c``, or ``@file`` with a JSON list or one class per line.

    Raises:
        UsageError: The file cannot be read, or no class is named.
    """
    if text.startswith("@"):
        path = Path(text[1:]).expanduser()
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the class list {path}", "give @FILE, a JSON list or one per line") from error
        names = _parsed_list(content, path)
    else:
        names = text.split(",")
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise UsageError(f"no class named in '{text}'", "name classes as a,b,c or @FILE")
    return names


LabelSource = str | Path | Sequence[str | Sequence[str]]
"""A label file, or what one holds: an entry per head output, ``"name"`` or ``["id", "name"]``."""


def label_map(source: Source, outputs: int | None, labels: LabelSource | None, *, strict: bool) -> LabelMap:
    """Lay the source's classes on the head's outputs.

    Args:
        source: The data.
        outputs: Number of head outputs; None: as many as the label file or the data say.
        labels: A label file, or its entries.
        strict: Refuse classes of the data that no head output stands for.

    Raises:
        InputError: Counts differ, the label file is unusable, or (strict) a class matches no output.
    """
    if labels is None:
        count = len(source.classes)
        if outputs is not None and outputs != count:
            raise InputError(
                f"the head has {outputs} outputs, but {source.name} has {count} classes",
                "give --labels FILE to match them by name, or train a new head with billhook train",
            )
        return LabelMap(source.classes, source.ids, tuple(range(count)))
    names, ids = named_outputs(labels, outputs)
    matched = tuple(_match(source, index, names, ids, strict) for index in range(len(source.classes)))
    for index, output in enumerate(matched):
        if output is not None and output in matched[:index]:
            other = source.classes[matched.index(output)]
            raise InputError(
                f"the classes '{other}' and '{source.classes[index]}' of {source.name} both match output {output}",
                f"merge the folders or correct {_where(labels)}",
            )
    return LabelMap(names, ids, matched)


def named_outputs(labels: LabelSource, outputs: int | None) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Names and ids of a label file or of its entries.

    Raises:
        InputError: It is unusable, or has another number of entries than the head has outputs.
    """
    where = _where(labels)
    names, ids = read_labels(labels) if isinstance(labels, str | Path) else parse_labels(labels, where)
    if outputs is not None and outputs != len(names):
        raise InputError(
            f"{where} has {len(names)} entries, but the head has {outputs} outputs", "give one entry per head output"
        )
    return names, ids


def read_labels(path: str | Path) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Read a label file.

    Returns:
        (names, ids); ids is None when no entry has one, and an entry without one then stands under its name.

    Raises:
        InputError: The file is missing or is not a list of names or pairs.
    """
    try:
        entries = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the label file {path}", LABELS_HINT) from error
    if not isinstance(entries, list) or not entries:
        raise InputError(f"the label file {path} is not a list", LABELS_HINT)
    return parse_labels(entries, str(path))


def parse_labels(entries: Sequence[Any], where: str) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Names and ids of label entries, as :func:`read_labels` gives them.

    Raises:
        InputError: An entry is neither a name nor a pair.
    """
    pairs: list[tuple[str, str]] = []
    for number, entry in enumerate(entries):
        if isinstance(entry, str):
            pairs.append((entry, entry))
        elif isinstance(entry, list | tuple) and len(entry) == 2 and all(isinstance(part, str) for part in entry):
            pairs.append((entry[0], entry[1]))
        else:
            raise InputError(f"entry {number} of {where} is neither a name nor a pair", LABELS_HINT)
    names = tuple(name for _, name in pairs)
    return names, tuple(identity for identity, _ in pairs) if any(a != b for a, b in pairs) else None


def resolve_classes(classes: Sequence[str | int], table: LabelMap, source: Source | None) -> tuple[int, ...]:
    """The head outputs of the named classes, ascending.

    A name, an id, a class (folder) name of the data, or an index; a string of digits is an index when nothing has that
    name.

    Args:
        classes: What is asked for.
        table: The names of the head outputs.
        source: The data; None: only the table's names are known.

    Raises:
        UsageError: None given, one unknown, ambiguous, or given twice.
    """
    if not classes:
        raise UsageError("no classes given to keep", "name at least one class")
    found: dict[int, str | int] = {}
    for item in classes:
        output = _resolve(item, table, source)
        if output in found:
            again = f"'{item}'" if found[output] == item else f"'{item}' (the same as '{found[output]}')"
            raise UsageError(f"class {again} is given twice", "name each class once")
        found[output] = item
    return tuple(sorted(found))


def _where(labels: LabelSource) -> str:
    return str(labels) if isinstance(labels, str | Path) else "the list of labels"


def _resolve(item: str | int, table: LabelMap, source: Source | None) -> int:
    if not isinstance(item, str):
        return _index(int(item), item, table)
    hits = _hits(item, table.names) or _hits(item, table.ids or ())
    if not hits and source is not None:
        hits = [o for o in (table.outputs[i] for i in _hits(item, source.classes)) if o is not None]
    if len(hits) > 1:
        shown = ", ".join(str(hit) for hit in hits)
        raise UsageError(f"the class name '{item}' stands for the outputs {shown}", "give the id or the index")
    if hits:
        return hits[0]
    if item.isascii() and item.isdigit():
        return _index(int(item), item, table)
    raise UsageError(f"unknown class '{item}'", nearest(item, [*table.names, *(table.ids or ())]))


def _index(index: int, item: Any, table: LabelMap) -> int:
    if not 0 <= index < len(table.names):
        raise UsageError(f"class index {item} is out of range", f"indices run from 0 to {len(table.names) - 1}")
    return index


def _match(source: Source, index: int, names: Sequence[str], ids: Sequence[str] | None, strict: bool) -> int | None:
    words = [source.classes[index], *([source.ids[index]] if source.ids else [])]
    for word in words:
        for column in (ids or (), names):
            hits = _hits(word, column)
            if len(hits) == 1:
                return hits[0]
            if hits and strict:
                raise InputError(
                    f"the class '{word}' of {source.name} matches {len(hits)} entries of the label file",
                    "name the folder by the id instead",
                )
    if strict:
        raise InputError(
            f"the class '{words[0]}' of {source.name} is not among the {len(names)} labels",
            nearest(words[0], [*names, *(ids or ())]),
        )
    return None


def _hits(word: str, column: Sequence[str]) -> list[int]:
    """Positions of a word: exactly written if there are any, else whatever the case, and with '_' for a space."""
    exact = [index for index, name in enumerate(column) if name == word]
    return exact or [index for index, name in enumerate(column) if _plain(name) == _plain(word)]


def _plain(word: str) -> str:
    return word.strip().lower().replace("_", " ").replace("-", " ")


def _parsed_list(content: str, path: Path) -> list[str]:
    if not content.lstrip().startswith("["):
        return content.splitlines()
    try:
        entries = json.loads(content)
    except ValueError as error:
        raise UsageError(f"the class list {path} is not valid JSON: {error}", "a JSON list or one per line") from error
    return [str(entry) for entry in entries]
