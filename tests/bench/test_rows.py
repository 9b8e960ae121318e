"""Rows, ratios and layers from literal times."""

import pytest

from billhook.bench.jobs import Timed
from billhook.bench.layers import lines
from billhook.bench.rows import Measured, comparisons, rows
from billhook.bench.summary import chosen

CONTRACT = {"engine", "network", "precision", "threads", "batch", "p50_ms", "p90_ms", "ratio_to_dense_onnxruntime"}


def timed(engine, network, precision, milliseconds, difference=0.0):
    return Timed(engine, network, precision, [[milliseconds] * 10] * 5, difference)


def measured():
    """OpenVINO's process found the machine half as fast as ONNX Runtime's did."""
    ort = [timed("onnxruntime", "dense", "f32", 12.0), timed("billhook", "dense", "f32", 12.0),
           timed("onnxruntime", "pruned", "f32", 12.0), timed("billhook", "pruned", "f32", 3.0),
           timed("billhook", "pruned", "bf16", 2.0, 0.004)]  # fmt: skip
    vino = [timed("openvino", "dense", "bf16", 12.0), timed("openvino", "dense", "f32", 24.0),
            timed("billhook", "dense", "f32", 24.0), timed("billhook", "pruned", "f32", 6.0),
            timed("billhook", "pruned", "bf16", 4.0)]  # fmt: skip
    return Measured(
        {"openvino": vino, "onnxruntime": ort}, {("billhook", "pruned", "f32"): 30}, {("openvino", "dense", "f32"): 7}
    )


def test_rows_have_their_order_and_keys():
    found = rows(measured(), 4, 2)
    assert [(row["network"], row["engine"], row["precision"]) for row in found] == [
        ("dense", "onnxruntime", "f32"),
        ("dense", "openvino", "f32"),
        ("dense", "openvino", "bf16"),
        ("dense", "billhook", "f32"),
        ("pruned", "onnxruntime", "f32"),
        ("pruned", "billhook", "f32"),
        ("pruned", "billhook", "bf16"),
    ]
    assert all(set(row) >= CONTRACT for row in found)
    assert {(row["threads"], row["batch"]) for row in found} == {(2, 4)}


def test_ratios_to_the_dense_network_in_onnx_runtime():
    found = {(row["engine"], row["network"], row["precision"]): row for row in rows(measured(), 4, 2)}
    expected = {
        ("onnxruntime", "dense", "f32"): 1.0,
        ("onnxruntime", "pruned", "f32"): 1.0,
        ("billhook", "pruned", "f32"): 4.0,
        ("billhook", "pruned", "bf16"): 6.0,
        # Over ours, which took twice as long in OpenVINO's process.
        ("openvino", "dense", "f32"): 1.0,
        ("openvino", "dense", "bf16"): 2.0,
    }
    for key, value in expected.items():
        row = found[key]
        assert [row[name] for name in ("ratio_to_dense_onnxruntime", "ratio_low", "ratio_high")] == [value] * 3, key
    pruned = found["billhook", "pruned", "f32"]
    # Reported from ONNX Runtime's process, where it took 3 ms.
    assert (pruned["p50_ms"], pruned["p90_ms"]) == (3.0, 3.0)
    assert pruned["images_per_second"] == pytest.approx(4 / 3e-3)
    assert (pruned["peak_memory_bytes"], pruned["file_bytes"]) == (30, None)
    assert found["openvino", "dense", "f32"]["file_bytes"] == 7
    assert found["billhook", "pruned", "bf16"]["max_difference"] == 0.004


def test_without_onnx_runtime_there_is_no_ratio():
    alone = Measured({"openvino": measured().pairs["openvino"]})
    assert {row["ratio_to_dense_onnxruntime"] for row in rows(alone, 1, 1)} == {None}


def test_without_ours_a_ratio_is_taken_across_processes():
    alone = Measured(
        {"onnxruntime": [timed("onnxruntime", "dense", "f32", 6.0)], "torch": [timed("torch", "dense", "f32", 12.0)]}
    )
    assert [row["ratio_to_dense_onnxruntime"] for row in rows(alone, 1, 1)] == [0.5, 1.0]


def test_comparisons_stay_within_a_process():
    found = {
        (entry["network"], entry["precision"], *entry["against"].values()): entry["ratio"]
        for entry in comparisons(measured().pairs)
    }
    assert found["pruned", "bf16", "openvino", "dense", "bf16"] == 3.0
    assert found["pruned", "f32", "openvino", "dense", "f32"] == 4.0
    assert found["dense", "f32", "onnxruntime", "dense", "f32"] == 1.0
    assert len(found) == 3 * 2 + 3 * 2


def test_the_summary_takes_the_first_engine_that_ran_both():
    ours, ort = {"engine": "billhook", "precision": "f32"}, {"engine": "onnxruntime", "precision": "f32"}
    both = [ort | {"network": "dense"}, ort | {"network": "pruned"}, ours | {"network": "pruned"}]
    assert {row["engine"] for row in chosen(both, ["dense", "pruned"]).values()} == {"onnxruntime"}
    both.append(ours | {"network": "dense"})
    assert {row["engine"] for row in chosen(both, ["dense", "pruned"]).values()} == {"billhook"}
    assert chosen([ours | {"network": "dense", "precision": "bf16"}], ["dense"]) == {}


def test_speed_counts_what_is_useful():
    steps = [
        {"name": "conv", "kind": "hybrid", "how": "hybrid, tile 14", "shape": (64, 14, 14), "density": 0.25,
         "seconds": 2e-4, "multiplications": 10_000_000},
        {"name": "add", "kind": "add", "how": "", "shape": (64, 14, 14), "density": 1.0, "seconds": 1e-5,
         "multiplications": 0},
        {"name": "untimed", "kind": "dense", "how": "dense", "shape": (1, 1, 1), "density": 1.0, "seconds": None,
         "multiplications": 5},
    ]  # fmt: skip
    conv, add, untimed = lines(steps, 400.0)
    assert conv["gflops"] == pytest.approx(100.0)
    assert conv["share_of_peak"] == pytest.approx(0.25)
    assert (conv["ms"], conv["kernel"]) == (pytest.approx(0.2), "hybrid, tile 14")
    assert (add["gflops"], add["share_of_peak"], add["kernel"]) == (None, None, "add")
    assert (untimed["ms"], untimed["gflops"]) == (None, None)
