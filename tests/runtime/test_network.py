"""What a user holds: arrays and pictures in, numbers and labels out, one line for every mistake."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import billhook.runtime
from billhook.errors import BillhookError, InputError, RunError, UsageError
from billhook.formats import read_network, write_network
from billhook.formats.graph import Graph, Preprocess
from billhook.runtime import native, network, reference
from billhook.runtime.network import SlowRuntimeWarning, load

from .networks import Building

needs_library = pytest.mark.skipif(not native.available(), reason=native.reason() or "no library")
PREPROCESS = Preprocess(12, 14, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
LABELS = ("cat", "dog", "bird", "fish", "frog")


def write(
    path: Path, preprocess: Preprocess | None = PREPROCESS, labels=LABELS, shape=(3, 12, 12), softmax=False
) -> Path:
    net = Building(shape)
    x = net.add("relu", net.conv("x", 32, 3, padding=1, name="a"))
    x = net.add("relu", net.add("add", [net.conv(x, 32, 3, padding=1, name="b", sparse=(2, 4, 16, 0.5)), x]))
    output = net.head(x)
    output = net.add("softmax", output) if softmax else output
    graph = Graph(net.input, shape, tuple(net.operators), output, preprocess, labels)
    write_network(path, graph, net.tensors, net.patterns)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("net") / "packed.safetensors")


@pytest.fixture(scope="module")
def net(file):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlowRuntimeWarning)
        return load(file, threads=1, plan="default")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).standard_normal((3, 3, 12, 12), np.float32)


@pytest.fixture
def without_library(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "reason", lambda: "it was not built")


def expected(file: Path, x: np.ndarray) -> np.ndarray:
    return reference.run(read_network(file), x)


# ---------------------------------------------------------------------- calls
def test_any_batch(file, net, images):
    whole = expected(file, images)
    np.testing.assert_allclose(net(images), whole, atol=1e-5)
    np.testing.assert_allclose(net(images[:1]), whole[:1], atol=1e-5)
    assert net(images[:0]).shape == (0, 5)
    assert net(images).dtype == np.float32


def test_one_image_without_a_batch(net, images):
    assert net(images[0]).shape == (5,)
    np.testing.assert_array_equal(net(images[0]), net(images)[0])


def test_channels_last(net, images):
    np.testing.assert_array_equal(net(images.transpose(0, 2, 3, 1), layout="NHWC"), net(images))
    np.testing.assert_array_equal(net(images[0].transpose(1, 2, 0), layout="NHWC"), net(images[0]))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_other_floats(net, images, dtype):
    np.testing.assert_allclose(net(images.astype(dtype)), net(images), atol=0.02)


def test_bytes_are_normalised(net):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 12, 12), np.uint8)
    mean, std = (np.array(values)[:, None, None] for values in (PREPROCESS.mean, PREPROCESS.std))
    floats = ((pixels / 255 - mean) / std).astype(np.float32)
    np.testing.assert_allclose(net(pixels), net(floats), atol=1e-4)
    np.testing.assert_array_equal(net(pixels.transpose(0, 2, 3, 1), layout="NHWC"), net(pixels))


def test_lists_and_tensors(net, images):
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(net(torch.from_numpy(images)), net(images))
    np.testing.assert_array_equal(net(images.tolist()), net(images))


@pytest.mark.parametrize(
    ("x", "layout", "message"),
    [
        (np.zeros((3, 12, 13), np.float32), "NCHW", "takes [N, 3, 12, 12] or [3, 12, 12], this is [3, 12, 13]"),
        (np.zeros((2, 12, 12, 3), np.float32), "NCHW", 'say layout="NHWC"'),
        (np.zeros((2, 3, 12, 12), np.float32), "NHWC", 'say layout="NCHW"'),
        (np.zeros((1, 1, 3, 12, 12), np.float32), "NCHW", "this is [1, 1, 3, 12, 12]"),
        (np.zeros(7), "NCHW", "predict"),
        (np.zeros((3, 12, 12), np.int64), "NCHW", "this is int64"),
        (np.zeros((3, 12, 12), bool), "NCHW", "this is bool"),
        (np.zeros((3, 12, 12), complex), "NCHW", "this is complex128"),
        (None, "NCHW", "this is []"),
        ([[1, 2], [3]], "NCHW", "this list is no array"),
        (np.zeros((3, 12, 12)), "CHWN", "unknown layout"),
    ],
)
def test_wrong_arrays(net, x, layout, message):
    with pytest.raises(UsageError) as caught:
        net(x, layout=layout)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_without_preprocessing(tmp_path):
    bare = load(write(tmp_path / "packed.safetensors", None), plan="default")
    assert bare(np.zeros((3, 12, 12))).shape == (5,)
    with pytest.raises(UsageError, match="how bytes are normalised"):
        bare(np.zeros((3, 12, 12), np.uint8))
    with pytest.raises(UsageError, match="how images are scaled"):
        bare.predict(np.zeros((12, 12, 3), np.uint8))


@needs_library
def test_from_several_threads(net, images):
    alone = net(images)
    results: list[np.ndarray | None] = [None] * 8

    def work(number: int) -> None:
        for _ in range(5):
            results[number] = net(images)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for result in results:
        np.testing.assert_array_equal(result, alone)


# ---------------------------------------------------------------------- pictures
@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(3)
    return Image.fromarray(rng.integers(0, 256, (40, 61, 3), np.uint8)).resize((23, 17))


def test_predict_gives_labels_by_probability(net, picture):
    found = net.predict(picture)
    assert sorted(label for label, _ in found) == sorted(LABELS)
    assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)
    assert sum(p for _, p in found) == pytest.approx(1)
    assert net.predict(picture, top=2) == found[:2]
    assert net.predict(picture, top=0) == []


def test_pictures_of_all_kinds(net, picture, tmp_path):
    path = tmp_path / "a.png"
    picture.save(path)
    first = net.predict(picture)
    assert net.predict(path) == first
    assert net.predict(str(path)) == first
    assert net.predict(path.read_bytes()) == first
    assert net.predict(np.array(picture)) == first
    grey = picture.convert("L")
    assert net.predict(grey) == net.predict(np.array(grey)) == net.predict(np.array(grey)[..., None])
    assert net.predict(picture.convert("RGBA")) == first


def test_the_network_sees_what_training_saw(net, picture, tmp_path):
    decode = pytest.importorskip("billhook.data.decode")
    for size in ((23, 17), (17, 23), (14, 14), (14, 40), (12, 12), (13, 200), (500, 499)):
        image = picture.resize(size)
        for mode in ("RGB", "P", "L", "RGBA", "I;16"):
            given = (
                image.convert(mode)
                if mode != "I;16"
                else Image.fromarray(np.array(image.convert("L"), np.uint16) * 257)
            )
            pixels = np.asarray(decode.fit(decode.to_rgb(given), PREPROCESS.resize, PREPROCESS.size))
            values = net(pixels, layout="NHWC").astype(np.float64)
            powers = np.exp(values - values.max())
            best = int(values.argmax())
            assert net.predict(given)[0] == (LABELS[best], pytest.approx(powers[best] / powers.sum()))


def test_predict_on_floats(net, images):
    one = net.predict(images[0])
    assert one == net.predict(images[:1])
    values = net(images[0]).astype(np.float64)
    assert dict(one)[LABELS[2]] == pytest.approx(np.exp(values[2]) / np.exp(values).sum())
    with pytest.raises(UsageError, match="one image at a time"):
        net.predict(images)


def test_a_softmax_in_the_network_is_enough(tmp_path, images, net):
    ends = load(write(tmp_path / "packed.safetensors", softmax=True), plan="default")
    assert ends(images[0]).sum() == pytest.approx(1, abs=1e-5)
    for (label, p), (other, q) in zip(ends.predict(images[0]), net.predict(images[0]), strict=True):
        assert (label, p) == (other, pytest.approx(q, abs=1e-5))


def test_numbers_in_place_of_labels(tmp_path, images):
    bare = load(write(tmp_path / "packed.safetensors", labels=()), plan="default")
    assert {label for label, _ in bare.predict(images[0])} == set("01234")


def test_one_grey_channel(tmp_path, picture):
    grey = Preprocess(12, 12, (0.5,), (0.2,))
    one = load(write(tmp_path / "packed.safetensors", grey, shape=(1, 12, 12)), plan="default")
    assert one.predict(picture) == one.predict(picture.convert("L"))


def test_bad_pictures(net, tmp_path):
    text = tmp_path / "text.png"
    text.write_text("no picture")
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (1, 2, 3)).save(buffer, "JPEG")
    for image, kind in (
        (text, InputError),
        (tmp_path / "none.png", InputError),
        (tmp_path, InputError),
        (buffer.getvalue()[:100], InputError),
        (b"", InputError),
        (np.zeros((4, 4, 2), np.uint8), UsageError),
        (np.zeros((4, 4, 3), np.int32), UsageError),
        (np.zeros((0, 4, 3), np.uint8), UsageError),
        (3.5, UsageError),
        (None, UsageError),
    ):
        with pytest.raises(kind) as caught:
            net.predict(image)
        assert "\n" not in str(caught.value)


def test_pictures_without_pillow(net, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match="Pillow"):
        net.predict("a.png")


# ---------------------------------------------------------------------- loading
def test_a_run_directory(file, images, net):
    found = load(file.parent, plan="default")
    np.testing.assert_allclose(found(images), net(images), atol=1e-6)


def test_what_cannot_be_loaded(tmp_path, file):
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(InputError, match="no run directory"):
        load(run)
    (run / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"billhook export .*run --to packed"):
        load(run)
    with pytest.raises(InputError):
        load(tmp_path / "none.safetensors")
    (tmp_path / "bad").write_bytes(b"123456789")
    with pytest.raises(InputError):
        load(tmp_path / "bad")
    for arguments in ({"precision": "f16"}, {"threads": 0}, {"threads": 1.0}, {"isa": "sse"}):
        with pytest.raises(UsageError):
            load(file, plan="default", **arguments)


@pytest.mark.parametrize("wrong", [{"path": None}, {"path": 3}, {"path": "a\0b"}, {"plan": None}, {"plan": False}])
def test_what_is_no_path(file, wrong):
    with pytest.raises(UsageError, match=f"{next(iter(wrong))} is"):
        load(**({"path": file, "plan": "default"} | wrong))


def one_map(shape: tuple[int, int, int], *windows: tuple[tuple[int, int, int, int], tuple[int, int]]) -> Building:
    """Pointwise convolutions of the image, activated so that vectors are filled up; (padding, stride) of each."""
    net = Building(shape)
    x = net.add("relu", "x", "image")
    parts = [net.conv(x, 1, 1, stride, padding) for padding, stride in windows] or [x]
    net.add("flatten", net.add("concat", [net.add("globalavgpool", part) for part in [*parts, parts[0]]]))
    return net


@needs_library
@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (one_map((1, 1, 1 << 27)), "the map .* takes 8589934592 bytes"),
        # Each window keeps to the limits of the file; together they ask for a halo of 2^30 pixels.
        (
            one_map((1, 1, 1), ((1 << 14, 0, 1 << 14, 0), (1 << 15, 1)), ((0, 1 << 14, 0, 1 << 14), (1, 1 << 15))),
            "the map .* takes 68723671104 bytes",
        ),
    ],
    ids=["a row longer than 32 bits", "halos"],
)
def test_a_tiny_file_cannot_ask_for_all_memory(net, reason, tmp_path):
    path = tmp_path / "large.safetensors"
    graph = Graph("x", net.shape, tuple(net.operators), net.operators[-1].output)
    write_network(path, graph, net.tensors, {})
    assert path.stat().st_size < 4096
    with pytest.raises(InputError, match=rf"large\.safetensors: {reason}"):
        load(path, plan="default")


@needs_library
def test_a_plan_that_is_not_there(file, tmp_path):
    with pytest.raises(InputError, match="cannot be used"):
        load(file, plan=tmp_path / "none.json")


@needs_library
@pytest.mark.parametrize("isa", [native.ISAS[i] for i in native.usable()] if native.available() else [])
def test_every_instruction_set(file, images, net, isa, monkeypatch):
    stated = load(file, plan="default", isa=isa)
    assert stated.isa == isa
    np.testing.assert_allclose(stated(images), net(images), atol=1e-5)
    monkeypatch.setenv("BILLHOOK_ISA", isa)
    forced = load(file, plan="default")
    assert forced.isa == isa
    np.testing.assert_array_equal(forced(images), stated(images))


@needs_library
def test_precisions(file, images, net):
    assert net.precision == "f32"
    if net.isa != "avx512_bf16":
        with pytest.raises(UsageError, match="AVX512_BF16"):
            load(file, precision="bf16", plan="default")
        return
    half = load(file, precision="bf16", plan="default")
    assert half.precision == "bf16"
    difference = np.abs(half(images) - net(images)).max()
    assert 0 < difference < 0.02 * np.abs(net(images)).max() + 0.02
    with pytest.raises(UsageError, match="avx512"):
        load(file, precision="bf16", isa="avx512", plan="default")


@needs_library
def test_threads(file, images, net):
    many = load(file, threads=3, plan="default")
    assert many.threads == 3
    np.testing.assert_allclose(many(images), net(images), atol=1e-6)
    assert load(file, plan="default").threads == network._cores()


@needs_library
def test_planning_once(tmp_path, images, monkeypatch):
    path = write(tmp_path / "packed.safetensors")
    opened = []
    net_type = native.Net

    def count(*arguments):
        opened.append(1)
        return net_type(*arguments)

    monkeypatch.setattr(native, "Net", count)
    first = load(path, threads=1)
    assert len(opened) > 5
    assert len(list(tmp_path.glob("packed.*.f32.1.plan.json"))) == 1
    opened.clear()
    second = load(path, threads=1)
    assert len(opened) == 1
    assert second.plan == first.plan
    np.testing.assert_array_equal(first(images), second(images))
    assert load(path, threads=1, plan=next(tmp_path.glob("*.json"))).plan == first.plan
    measured = [step for step in first.plan if step["choice"]]
    assert [step["name"] for step in measured] == ["a", "b", "linear7"]
    assert all(step["seconds"] > 0 for step in measured)


@needs_library
def test_the_plan_can_be_read(net):
    assert [step["kind"] for step in net.plan] == ["load", "dense", "hybrid", "global", "dense", "store"]
    keys = ["name", "kind", "shape", "density", "multiplications", "efficiency", "choice", "seconds", "how"]
    assert all(list(step) == keys for step in net.plan)
    step = net.plan[2]
    assert (step["name"], step["shape"], step["choice"]["slots"]) == ("b", [32, 12, 12], 4)
    assert step["density"] == pytest.approx(0.25, abs=0.05)
    lines = str(net.plan).splitlines()
    assert len(lines) == 7
    assert lines[3].split()[:3] == ["b", "hybrid", "32x12x12"]
    assert "slots 4" in lines[3]
    timed = net.profile(repeats=2)
    assert all(step["seconds"] > 0 for step in timed)
    assert len(str(timed).splitlines()) == 7
    assert repr(net) == f"<billhook network: 3x12x12 to 5, f32, {net.isa}, threads 1>"


@needs_library
def test_a_saved_program_runs(net, images, tmp_path):
    net.save_program(tmp_path / "a.program")
    program = np.fromfile(tmp_path / "a.program", np.uint8)
    with native.Net(program) as opened:
        np.testing.assert_array_equal(opened.run(images), net(images))
    with pytest.raises(RunError, match="cannot write"):
        net.save_program(tmp_path / "none" / "a.program")


# ---------------------------------------------------------------------- without the library
def test_numpy_does_it_too(file, images, without_library):
    with pytest.warns(SlowRuntimeWarning, match="it was not built") as caught:
        slow = load(file, precision="bf16")
    assert len(caught) == 1
    assert (slow.isa, slow.precision, slow.threads) == ("numpy", "f32", 1)
    np.testing.assert_allclose(slow(images), expected(file, images), atol=1e-5)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), np.uint8)
    mean, std = np.array(PREPROCESS.mean), np.array(PREPROCESS.std)
    floats = ((pixels / 255 - mean) / std).astype(np.float32)
    np.testing.assert_allclose(slow(pixels, layout="NHWC"), slow(floats, layout="NHWC"), atol=1e-4)
    assert {label for label, _ in slow.predict(pixels[0])} == set(LABELS)
    assert [step["how"] for step in slow.plan] == ["numpy"] * len(slow.plan)
    assert str(slow.plan)
    for call in (slow.profile, lambda: slow.save_program("a")):
        with pytest.raises(BillhookError, match="native library"):
            call()


# ---------------------------------------------------------------------- what it costs to import
def test_importing_brings_numpy_alone():
    code = (
        "import numpy, sys; before = set(sys.modules); import billhook.runtime; billhook.runtime.load;"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names);"
        "print(sorted(new - {'numpy'}), [m for m in ('torch', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "['billhook'] []", done.stderr


def test_the_front_door():
    assert billhook.runtime.load is load
    assert "load" in dir(billhook.runtime)


def test_the_example_labels_a_folder(tmp_path, picture):
    write(tmp_path / "packed.safetensors")
    folder = tmp_path / "photos" / "more"
    folder.mkdir(parents=True)
    for number in range(5):
        picture.rotate(90 * number).save(folder / f"{number}.png")
    (folder / "bad.jpg").write_text("no picture")
    (folder / "notes.txt").write_text("no picture either")
    example = Path(__file__).parents[2] / "examples" / "folder.py"
    command = [sys.executable, str(example), str(tmp_path / "packed.safetensors"), str(folder.parent)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [Path(row[0]).name for row in rows] == [f"{number}.png" for number in range(5)]
    assert rows[0][1:] == rows[4][1:]
    assert all(row[1] in LABELS and 0.2 < float(row[2]) <= 1 for row in rows)
    assert "bad.jpg" in done.stderr
    assert "5 images" in done.stderr
    done = subprocess.run([*command[:2], "nowhere", "."], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
