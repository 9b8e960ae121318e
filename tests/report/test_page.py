"""The page as a whole: what it holds, that it stands alone, and that it is the same every time."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from billhook.errors import InputError, RunError
from billhook.report import write_report

from .runs import write_run

SECTIONS = [
    "headline",
    "comparison",
    "epochs",
    "layers",
    "classes",
    "confusion",
    "masks",
    "left-dense",
    "run",
    "recipe",
]
VOID = {"meta", "img", "br", "wbr", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags balance, and keeps what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if "id" in dict(attrs):
            self.ids.append(str(dict(attrs)["id"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\u00a0", " ").split())


def edit(directory: Path, **changes: object) -> None:
    path = directory / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def page(directory: Path) -> Page:
    return Page(write_report(directory).read_text(encoding="utf-8"))


def test_full_run_has_every_section_balanced_and_small(run_directory: Path) -> None:
    found = page(run_directory)
    assert found.ids == SECTIONS
    assert (run_directory / "report.html").stat().st_size < 1_500_000
    assert sorted(path.name for path in run_directory.iterdir() if "report" in path.name) == [
        "report.html",
        "report_data.npz",
    ]


def test_headline_says_the_result(run_directory: Path) -> None:
    text = page(run_directory).text
    assert "The budget of sparsity ≥ 90 % is met (90.1 %)." in text
    assert "It gets 94.6 % of the test images right, 0.6 points below the dense network fine-tuned" in text
    assert "Its file is 7.9× smaller than before." in text
    assert "853,018" in text
    assert "3.45 MB" in text
    assert "10.2× fewer" in text
    assert "769,000 zeros" in text


def test_every_part_of_a_full_run_is_drawn(run_directory: Path) -> None:
    found = page(run_directory)
    charts = [attributes for tag, attributes in found.tags if tag == "svg" and attributes.get("class") == "chart"]
    assert len(charts) == 2
    assert all(chart["role"] == "img" and "from" in str(chart["aria-label"]) for chart in charts)
    images = [attributes for tag, attributes in found.tags if tag == "img"]
    assert len(images) == 4
    assert all(str(image["src"]).startswith("data:image/png;base64,") and image["alt"] for image in images)
    ticks = [attributes for tag, attributes in found.tags if tag == "line" and attributes.get("class") == "tick"]
    assert len(ticks) == 6
    text = found.text
    for words in (
        "layer3.8.conv2", "keeps 7 of 36 block columns", "first convolution", "1.2 × 10⁻⁶", "5 min 00 s", "1.83 GB",
        "9f86d081884c7d65", "billhook prune recipe.yaml --out again", "1 line of history.jsonl could not be read",
    ):  # fmt: skip
        assert words in text
    assert text.count("left dense") == 3  # two layers and the heading


def test_recipe_is_verbatim(run_directory: Path) -> None:
    recipe = (run_directory / "recipe.yaml").read_text()
    assert recipe in "".join(page(run_directory).words)


def test_page_loads_nothing(run_directory: Path) -> None:
    found = page(run_directory)
    for tag, attributes in found.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "xlink:href", "data", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    text = (run_directory / "report.html").read_text()
    assert not re.search(r"https?://", text)
    assert "url(" not in text
    assert "@import" not in text


def test_names_are_escaped_everywhere(tmp_path: Path) -> None:
    evil = "\"><script>alert('x')</script><b>"
    directory = write_run(tmp_path / "run", classes=["cat", "<b>", evil])
    held = dict(np.load(directory / "report_data.npz"))
    held["layer_names"][3] = "<i>l"
    held[f"mask/{evil}".replace("/script", "script")] = np.ones((4, 8), dtype=np.uint8)
    np.savez(directory / "report_data.npz", **held)
    edit(
        directory, model=evil, data=evil, method=evil, environment={evil: evil},
        layers_left_dense=[{"name": evil, "reason": evil}],
    )  # fmt: skip
    text = write_report(directory).read_text()
    Page(text)
    assert "<script" not in text
    assert "<b>" not in text
    assert "<i>" not in text
    assert text.count("&lt;b&gt;") > 10


def test_same_input_same_bytes(run_directory: Path) -> None:
    first = write_report(run_directory).read_bytes()
    assert write_report(run_directory).read_bytes() == first


def test_minimal_run_reads_not_measured_never_nought(minimal_directory: Path) -> None:
    found = page(minimal_directory)
    assert found.ids == SECTIONS
    text = found.text
    assert "budget missed" in text
    assert "Its accuracy was not measured." in text
    assert "had no dense fine-tuned control" in text
    assert "peak memory not measured" in text
    assert "Accuracy per class was not measured." in text
    assert "The confusion of classes was not measured." in text
    assert "The run kept no pictures of masks" in text
    assert "holds no recipe.yaml" in text
    assert "Top-1, full head not measured not measured not measured" in text
    assert not re.search(r"(?<![\d.,])0(\.0+)? (%|bytes|s)\b", text)


def test_summary_of_nulls_alone(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    found = page(tmp_path)
    assert found.ids == SECTIONS
    assert "The run states no budget." in found.text


def test_without_control_the_dense_network_is_the_measure(run_directory: Path) -> None:
    edit(run_directory, dense_finetuned=None)
    assert "1.2 points above the dense network as it came (93.4 %)" in page(run_directory).text


def test_many_classes_show_the_largest_changes_and_a_table(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", classes=[f"class {index}" for index in range(100)])
    found = page(directory)
    assert "The 20 largest changes. Changes are against: dense, fine-tuned (control)." in found.text
    assert "All 100 classes" in found.text
    assert "100 classes (class 0, class 1, class 2, …)" in found.text
    assert any("Confusion matrix of 100 classes" in str(attributes.get("alt")) for _, attributes in found.tags)
    assert sum(attributes.get("class") == "dots" for _, attributes in found.tags) == 21
    assert (directory / "report.html").stat().st_size < 1_500_000


def test_missing_or_damaged_runs_are_input_errors(tmp_path: Path, run_directory: Path) -> None:
    with pytest.raises(InputError, match="is not a directory"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"summary\.json is missing"):
        write_report(tmp_path)
    (run_directory / "report_data.npz").write_bytes(b"PK\x03\x04torn")
    with pytest.raises(InputError, match=r"report_data\.npz cannot be read"):
        write_report(run_directory)
    (run_directory / "summary.json").write_text("[1]")
    with pytest.raises(InputError, match="not a JSON object"):
        write_report(run_directory)
    (run_directory / "summary.json").write_text('{"model":')
    with pytest.raises(InputError, match="is not JSON"):
        write_report(str(run_directory))
    assert not (run_directory / "report.html").exists()


def test_pickled_arrays_are_refused(run_directory: Path) -> None:
    np.savez(run_directory / "report_data.npz", class_names=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="cannot be read"):
        write_report(run_directory)


def test_a_page_that_cannot_be_written_leaves_nothing(run_directory: Path) -> None:
    (run_directory / "report.html").mkdir()
    with pytest.raises(RunError, match="cannot be written"):
        write_report(run_directory)
    assert not list(run_directory.glob(".report.html*"))


def test_each_missing_file_leaves_only_its_section_out(run_directory: Path) -> None:
    for name in ("history.jsonl", "architecture.json", "report_data.npz", "recipe.yaml"):
        (run_directory / name).unlink()
        assert page(run_directory).ids == SECTIONS
    assert "The run recorded no accuracy or sparsity over the epochs." in page(run_directory).text


def test_the_page_of_a_trained_network_claims_no_pruning(tmp_path: Path) -> None:
    directory = tmp_path / "dense"
    directory.mkdir()
    summary = {
        "method": "dense", "model": "resnet20", "data": "photos", "classes": ["a", "b"], "budget": [], "pruned": None,
        "dense_finetuned": None, "seconds": {"train": 3.0, "total": 4.0}, "peak_rss_bytes": 500_000_000,
        "dense": {"top1_full": 0.755, "top1_kept": 0.755, "params": 269332, "nonzero": 269332, "macs": 40550656,
                  "effective_macs": 40550656, "channels": 688, "bytes": 1090960},
    }  # fmt: skip
    (directory / "summary.json").write_text(json.dumps(summary))
    line = {"phase": "train", "event": "epoch", "epoch": 1.0, "loss": 1.0, "val_top1_kept": 0.7}
    (directory / "history.jsonl").write_text(json.dumps(line) + "\n")
    (directory / "recipe.yaml").write_text("model: resnet20\n")
    page = write_report(directory).read_text()
    assert "75.5" in page
    assert "resnet20 on photos, classes a and b, trained." in page
    body = re.sub(r"<[^>]*>", " ", page[page.index("<body>") :]).lower()
    for word in ("pruned", "control", "billhook prune", "not measured", "accuracy and sparsity"):
        assert word not in body, word
