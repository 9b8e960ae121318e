"""``billhook simulate``."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Any

import typer

from billhook.cli import common
from billhook.cli.common import percent, print_json
from billhook.errors import BillhookError, UsageError
from billhook.text import table

BASE = ("design", "layer", "cycles", "energy_uj", "speedup", "bound_by")


def simulate(
    model: Annotated[str, typer.Argument(help="Model spec or run directory.")],
    sweep: Annotated[bool, typer.Option("--sweep", help="All of N:M x block size x pruned blocks; totals.")] = False,
    machine: Annotated[
        list[str] | None, typer.Option("--machine", help="YAML file of a further design, or of ours under its name.")
    ] = None,
    nm: Annotated[
        str | None, typer.Option("--nm", help="N:M for every layer that takes it, in place of its own.")
    ] = None,
    block: Annotated[int, typer.Option("--block", min=0, help="Block side, with --nm or --blocks-pruned.")] = 0,
    blocks_pruned: Annotated[
        float, typer.Option("--blocks-pruned", min=0, max=1, help="Share of every layer's block columns, 0 to 1.")
    ] = 0.0,
    data: common.Data = None,
    weights: common.Weights = None,
    model_flag: common.ModelFlag = None,
    input_size: common.InputSize = None,
    csv_file: Annotated[str | None, typer.Option("--csv", help="Write the rows to this file.", metavar="FILE")] = None,
    as_json: common.Json = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> int:
    """What the pattern buys on sparse tensor cores: modelled cycles and energy, layer by layer."""
    from billhook.accelerator import machines, read_machine
    from billhook.accelerator.study import study
    from billhook.accelerator.sweep import parse_choice
    from billhook.accelerator.workload import read_workload

    del debug, quiet
    # What makes no sense is refused before anything is opened.
    designs = machines(tuple(read_machine(path) for path in machine or ()))
    choice = parse_choice(nm, block, blocks_pruned)
    if sweep and choice is not None:
        raise UsageError("--sweep lays its own patterns", "leave --nm, --block and --blocks-pruned away")
    work = read_workload(model, weights=weights, rebuild=model_flag, data=data, input_size=input_size)
    document = study(work, designs, sweep=sweep, choice=choice)
    if csv_file is not None:
        write_csv(Path(csv_file), document["rows"])
    if work.run and choice is None:
        _keep(Path(model), document)
    if as_json:
        print_json(document)
    else:
        show(document, sweep)
    return 0


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """One line per row; the energy of every level in a column of its own."""
    flat = [
        {key: value for key, value in row.items() if key != "energy_by_level"}
        | {f"energy_{level}_uj": value for level, value in row["energy_by_level"].items()}
        for row in rows
    ]
    with open(path, "w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, [*BASE, *(key for key in flat[0] if key not in BASE)])
        writer.writeheader()
        writer.writerows(flat)


def _keep(directory: Path, document: dict[str, Any]) -> None:
    """Beside the run and in its page; a directory that cannot be written is no reason to say nothing."""
    from billhook import artifact
    from billhook.report import write_report

    part = "sweep" if "reached" in document else "layers"
    try:
        before: dict[str, Any] = {}
        if (directory / artifact.SIMULATION).is_file():
            before = artifact.read_json(directory / artifact.SIMULATION)
        artifact.write_json(directory / artifact.SIMULATION, before | {part: document})
        write_report(directory)
    except (BillhookError, OSError) as error:
        typer.echo(f"warning: {directory} does not keep this simulation: {error}", err=True)


def show(document: dict[str, Any], sweep: bool) -> None:
    """Print the document as tables."""
    side = "x".join(str(size) for size in document["input_size"])
    typer.echo(f"{document['model']}, one image of {side} pixels; modelled, not measured\n")
    if sweep:
        _show_sweep(document)
    else:
        _show_layers(document)
    for note in document["notes"]:
        typer.echo(f"* {note[:1].upper()}{note[1:]}{'' if note.endswith('.') else '.'}")


def _show_layers(document: dict[str, Any]) -> None:
    designs = [entry["name"] for entry in document["designs"]]
    of = {(row["design"], row["layer"]): row for row in document["rows"]}
    others, last = designs[1:], "crisp-stc"
    lines = []
    for layer in document["layers"]:
        cells = [layer["name"], f"{layer['m']}x{layer['k']}x{layer['n']}" + _groups(layer), layer["pattern"]]
        cells.append(f"{of[designs[0], layer['name']]['cycles']:,}")
        cells += [f"{of[name, layer['name']]['speedup']:.2f}" for name in others]
        cells.append(of[last, layer["name"]]["bound_by"])
        lines.append(cells)
    header = ["layer", "MxKxN", "weights", "dense cycles", *others, "crisp bound by"]
    typer.echo(table(lines, header) + "\n")
    totals = [[name, *_total(of[name, "total"])] for name in designs]
    header = ["total", "cycles", "us", "energy uJ", "uJ x us", "faster", "less energy", "utilised", "bound by"]
    typer.echo(table(totals, header) + "\n")
    bits = document["metadata"]["total"]
    if bits["crisp"]:
        names = {
            "crisp": "CRISP",
            "csr": "CSR",
            "ellpack": "ELLPACK",
            "bitmap": "bitmap",
            "blocked_ell": "blocked-ELL*",
        }
        rows = [[title, f"{bits[key]:,}", f"{bits[key] / bits['crisp']:.2f}"] for key, title in names.items()]
        typer.echo(table(rows, ["positions", "bits", "of CRISP's"]))
        typer.echo(f"* but {bits['blocked_ell_values']:,} values instead of {bits['values']:,}\n")


def _groups(layer: dict[str, Any]) -> str:
    return f" x{layer['groups']}" if layer["groups"] > 1 else ""


def _total(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['cycles']:,}",
        f"{row['latency_us']:,.1f}",
        f"{row['energy_uj']:,.1f}",
        f"{row['energy_delay']:.3g}",
        f"{row['speedup']:.2f}",
        f"{row['energy_ratio']:.2f}",
        percent(row["utilisation"]),
        row["bound_by"],
    ]


def _show_sweep(document: dict[str, Any]) -> None:
    rows = document["rows"]
    shares = sorted({row["block_sparsity"] for row in rows})
    patterns = list(dict.fromkeys((row["nm"], row["block"]) for row in rows))
    found = {(row["design"], row["nm"], row["block"], row["block_sparsity"]): row for row in rows}
    for key, title in (("speedup", "faster than dense"), ("energy_ratio", "less energy than dense")):
        for design in [entry["name"] for entry in document["designs"][1:]]:
            header = [f"{design}, {title}", *(f"{100 * share:g} %" for share in shares)]
            lines = []
            for nm, block in patterns:
                cells = [f"{found[design, nm, block, share][key]:.2f}" for share in shares]
                lines.append([f"{nm}, B = {block}", *cells])
            # A design that sees no blocks says the same in every column.
            if all(len(set(line[1:])) == 1 for line in lines):
                header = [header[0], "with any blocks"]
                lines = [[nm, text] for nm, text in {line[0].partition(",")[0]: line[1] for line in lines}.items()]
            typer.echo(table(lines, header) + "\n")
    typer.echo("Columns: share of the block columns that is pruned.\n")
    for entry in document["reached"]:
        typer.echo(reached_sentence(entry))
    typer.echo("")


def reached_sentence(entry: dict[str, Any]) -> str:
    """What it takes to get to a factor, or that nothing gets there."""
    goal = f"{entry['times']:g}x in {entry['metric']}"
    where = "the network" if entry["scope"] == "network" else "one layer"
    pattern = f"{entry['nm']}, B = {entry['block']}, {100 * entry['block_sparsity']:g} % of the blocks pruned"
    pattern += f" ({100 * entry['sparsity']:.1f} % zeros)"
    layer = f", {entry['layer']}" if entry["layer"] else ""
    if entry["met"]:
        return f"crisp-stc, {where}: {goal} from {pattern}{layer}"
    best = f"at most {entry['value']:.2f}x, {pattern}{layer}, bound by {entry['bound_by']}"
    return f"crisp-stc, {where}: {goal} not reached; {best}"
