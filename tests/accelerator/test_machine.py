"""Machine files: those that come along, and those that make no sense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from billhook.accelerator import Machine, built_in, machine_text, machines, parse_machine, read_machine
from billhook.accelerator.machine import BUILT_IN
from billhook.errors import InputError


def content(name: str = "crisp-stc") -> dict[str, Any]:
    found = yaml.safe_load(machine_text(name))
    assert isinstance(found, dict)
    return found


def changed(path: str, value: object, name: str = "crisp-stc") -> str:
    """The YAML of a machine with one field set; None takes it out."""
    whole = content(name)
    *parents, last = path.split(".")
    place = whole
    for parent in parents:
        place = place[parent]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return yaml.safe_dump(whole)


def test_five_come_along() -> None:
    assert tuple(machine.name for machine in machines()) == BUILT_IN
    assert [machine.macs_per_cycle for machine in machines()] == [1024] * 5
    assert all(machine.title and machine.source for machine in machines())


def test_one_table_of_energies() -> None:
    """Technologies are not mixed: whatever is common to two designs costs the same in both."""
    for machine in machines():
        dense = built_in("dense-tc")
        assert machine.mac_pj == dense.mac_pj
        assert machine.dram == dense.dram
        assert machine.smem.model_copy(update={"metadata": None}) == dense.smem
        assert machine.accumulators == dense.accumulators
    arrays = {name: built_in(name).smem.metadata for name in BUILT_IN[1:]}
    assert len(set(arrays.values())) == 1
    registers = {built_in(name).operands.read_pj for name in BUILT_IN if name != "dstc"}
    assert registers == {0.072}


def test_machines_are_frozen() -> None:
    with pytest.raises(ValueError):
        built_in("dense-tc").mac_pj = 1.0


def test_own_machines(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(changed("name", "mine"))
    mine = read_machine(path)
    assert [machine.name for machine in machines((mine,))] == [*BUILT_IN, "mine"]
    path.write_text(changed("dram.read_words_per_cycle", 64, "dense-tc"))
    faster = read_machine(path)
    assert machines((faster,))[0].dram.read_words_per_cycle == 64
    with pytest.raises(InputError, match="two machines are called 'mine'"):
        machines((mine, mine))


def test_an_unquoted_pattern_is_no_number_of_base_sixty() -> None:
    text = machine_text("nvidia-stc").replace('["2:4"]', "[2:4]")
    assert "[2:4]" in text
    assert parse_machine(text) == built_in("nvidia-stc")


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("dram.read_words_per_cycle", 0, "dram.read_words_per_cycle"),
        ("dram.read_words_per_cycle", -1, "dram.read_words_per_cycle"),
        ("dram.read_words_per_cycle", float("nan"), "dram.read_words_per_cycle"),
        ("dram.read_words_per_cycle", None, "dram.read_words_per_cycle"),
        ("dram.write_words_per_cycle", None, "dram.write_words_per_cycle"),
        ("smem.read_words_per_cycle", 0.0, "smem.read_words_per_cycle"),
        ("smem.read_words_per_cycle", None, "smem.read_words_per_cycle"),
        ("smem.capacity", 3000, "smem.capacity: 3000 words do not hold the 3072 words of its tile"),
        ("accumulators.capacity", 4096, "accumulators.capacity: 4096 words do not hold the 8192"),
        ("operands.capacity", 512, "operands.capacity: 512 words do not hold the 1024"),
        ("smem.metadata.access_bits", 0, "smem.metadata.access_bits"),
        ("macs_per_cycle", 2048, "macs_per_cycle: 2048, but the mapping multiplies 1024"),
        ("mac_pj", -0.5, "mac_pj"),
        ("mac_pj", "cheap", "mac_pj"),
        ("clock_mhz", 0, "clock_mhz"),
        ("mapping.rows", 0, "mapping.rows"),
        ("mapping.dataflow", "magic", "mapping"),
        ("mapping", None, "mapping"),
        ("name", "two words", "name"),
        ("colour", "blue", "colour"),
        ("smem.colour", "blue", "smem.colour"),
        ("sparsity.patterns", ["4:2"], "sparsity.patterns"),
        ("sparsity.patterns", ["some"], "sparsity.patterns"),
        ("sparsity.unstructured", True, "sparsity.unstructured"),
    ],
)
def test_nonsense_is_refused_with_its_field(path: str, value: object, field: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_machine(changed(path, value), "mine.yaml")
    assert caught.value.exit_code == 2
    assert caught.value.message.startswith(f"the machine mine.yaml: {field}")


def test_nonsense_of_outer_products() -> None:
    for path, value, field in (
        ("operands.capacity", 300, "operands.capacity: 300 words do not hold the 384"),
        ("accumulators.capacity", 8000, "accumulators.capacity: 8000 words do not hold the 8192"),
        ("mapping.tiles", [], "mapping.tiles"),
        ("sparsity.unstructured", False, "sparsity.unstructured"),
        ("sparsity.blocks", True, "sparsity.patterns"),
    ):
        with pytest.raises(InputError) as caught:
            parse_machine(changed(path, value, "dstc"), "mine.yaml")
        assert caught.value.message.startswith(f"the machine mine.yaml: {field}")


def test_what_is_no_machine_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the machine"):
        read_machine(tmp_path / "none.yaml")
    for text, message in (("a: [", "is not YAML: line"), ("- 1", "is not a mapping"), ("", "is not a mapping")):
        with pytest.raises(InputError, match=message):
            parse_machine(text)
    with pytest.raises(InputError, match="choose from: dense-tc"):
        machine_text("tpu")


def test_the_dump_of_a_machine_is_the_machine() -> None:
    for machine in machines():
        assert Machine.model_validate(machine.model_dump(mode="json")) == machine
