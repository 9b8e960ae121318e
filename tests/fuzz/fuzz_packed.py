"""Feeds damaged bytes to the reader of packed networks: a refusal or a sound network, nothing else.

    python tests/fuzz/fuzz_packed.py --seconds 600          # Atheris when it is installed, else a loop of its own
    python tests/fuzz/fuzz_packed.py --seconds 60 --loop    # the loop anyway
    python tests/fuzz/fuzz_packed.py --replay FILE ...      # one line for each file

Inputs are whole files. Mutations know their structure (most random bytes end at the first length): numbers, words and
branches of the three JSON documents are changed and the lengths put right, so that the checks behind the first are met.
Inputs that fail are kept in ``--findings``; those that a fixed reader should meet again belong into ``corpus/``.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"
NETWORK, PACKED = "billhook.network", "billhook.packed"
LARGEST = 1 << 16
"""Bytes of an input: the reader's limits do not need long files to be met."""
MAX_WORK = 1 << 22
"""Elements that are worth running a network for."""
MAX_SECONDS = 5.0
MAX_MEMORY = 3 << 30

NUMBERS = (-1, 0, 1, 2, 3, 4, 7, 8, 16, 255, 256, 1 << 15, (1 << 15) + 1, 1 << 16, 1 << 27, 1 << 28, (1 << 31) - 1)
NUMBERS += (1 << 31, 1 << 32, 1 << 53, (1 << 63) - 1, 1 << 63, 1 << 64, 10**30, 10**400)
WORDS: tuple[Any, ...] = (
    None,
    True,
    False,
    "",
    "x",
    "\x00",
    "é",
    0.5,
    -0.0,
    1e308,
    1e-320,
    [],
    {},
    [[]],
    [1, 1],
    "\ud800",
)


def check(data: bytes, path: Path) -> tuple[str, str]:
    """Reads ``data`` as a packed network and runs it when it is small.

    Returns:
        ``sound`` or the line of code that refused the file, and the reason.

    Raises:
        Exception: whatever but a refusal; AssertionError when what was read is not as promised.
    """
    import numpy as np

    from billhook.errors import InputError
    from billhook.formats import read_network, write_network
    from billhook.runtime.reference import run

    path.write_bytes(data)
    began = time.perf_counter()
    try:
        network = read_network(path)
    except InputError as error:
        return refusal(error, path)
    finally:
        assert time.perf_counter() - began < MAX_SECONDS, "reading took too long"
    graph = network.graph
    assert not graph.labels or len(graph.labels) == network.outputs
    work = sum(int(np.prod(shape)) for shape in network.shapes.values())
    work += sum(int(np.prod(item.shape)) for item in network.packed.values())
    windows = [operator.settings.get("kernel", (1, 1)) for operator in graph.operators]
    if work * max((down * along for down, along in windows), default=1) > MAX_WORK:
        return "sound", "large"
    weights = {name: network.weight(name) for name in (*network.tensors, *network.packed)}
    values = np.zeros((1, *graph.shape), np.float32)
    assert run(network, values, weights).shape == (1, network.outputs)
    again = path.with_name("again")
    write_network(again, graph, weights, {})
    assert read_network(again).graph == graph
    return "sound", ""


def refusal(error: Any, path: Path) -> tuple[str, str]:
    """Where and why; AssertionError when the message is not what people need."""
    assert path.name in error.message, f"the file is not named: {error}"
    assert error.hint, f"no hint: {error}"
    assert len(error.message) < 2000, "the message takes pages"
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    frames = [frame for frame in traceback.extract_tb(first.__traceback__) if "billhook" in frame.filename]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else type(first).__name__
    return where, error.message.replace(str(path), "FILE")


# Structure-aware mutations


def split(data: bytes) -> tuple[dict[str, Any], bytes] | None:
    """The header, its metadata documents parsed, and the bytes after it."""
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        for key in (NETWORK, PACKED):
            if key in header["__metadata__"]:
                header["__metadata__"][key] = json.loads(header["__metadata__"][key])
        return header, data[8 + length :]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def join(header: dict[str, Any], body: bytes) -> bytes:
    """Undoes :func:`split`; every length is right."""
    header = copy.copy(header)
    metadata = header.get("__metadata__")
    if isinstance(metadata, dict):
        header["__metadata__"] = {
            key: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            for key, value in metadata.items()
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def places(document: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a document."""
    found: list[tuple[Any, Any]] = []
    pending = [document]
    while pending:
        inner = pending.pop()
        keys = inner.keys() if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
        for key in keys:
            found.append((inner, key))
            pending.append(inner[key])
    return found


def change(document: Any, rng: random.Random) -> None:
    """One change somewhere in a document."""
    everywhere = places(document)
    if not everywhere:
        return
    container, key = rng.choice(everywhere)
    value = container[key]
    choice = rng.random()
    if type(value) is int and choice < 0.7:
        container[key] = rng.choice((value + 1, value - 1, value * 2, -value, rng.choice(NUMBERS)))
    elif isinstance(value, float) and choice < 0.7:
        container[key] = rng.choice((-value, value * 1e300, value * 1e-300, 0.0))
    elif choice < 0.5:
        # A word or branch from elsewhere: names that exist, settings of other operators.
        other, place = rng.choice(everywhere)
        container[key] = copy.deepcopy(other[place])
    elif choice < 0.6:
        container[key] = rng.choice(WORDS)
    elif choice < 0.7:
        container[key] = rng.choice(NUMBERS)
    elif choice < 0.8:
        del container[key]
    elif isinstance(container, list):
        if choice < 0.9:
            container.insert(rng.randrange(len(container) + 1), copy.deepcopy(value))
        else:
            rng.shuffle(container)
    elif choice < 0.9:
        container[f"{key}'"] = container.pop(key)
    else:
        container[str(rng.choice(NUMBERS))] = rng.choice(WORDS)


def resize(header: dict[str, Any], body: bytes, rng: random.Random) -> bytes:
    """Makes a tensor longer or shorter, with all offsets put right."""
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    entry = rng.choice(entries)
    begin, end = entry["data_offsets"]
    size = {"F32": 4, "I32": 4}.get(entry["dtype"], 1)
    more = size * rng.choice((-2, -1, 1, 2, 16))
    if end - begin + more < 0:
        return body
    body = body[:begin] + (body[begin:end] + bytes(64))[: end - begin + more] + body[end:]
    for other in entries:
        if other is not entry and other["data_offsets"][0] >= end:
            other["data_offsets"] = [place + more for place in other["data_offsets"]]
    entry["data_offsets"] = [begin, end + more]
    if len(entry["shape"]) == 1:
        entry["shape"] = [(end - begin + more) // size]
    return body


def scramble(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut or repeated."""
    raw = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not raw:
            break
        place = rng.randrange(len(raw))
        choice = rng.random()
        if choice < 0.5:
            raw[place] = rng.randrange(256)
        elif choice < 0.7:
            raw[place] ^= 1 << rng.randrange(8)
        elif choice < 0.8:
            del raw[place : place + rng.randint(1, 16)]
        elif choice < 0.9:
            raw[place:place] = raw[place : place + rng.randint(1, 64)]
        elif choice < 0.95:
            del raw[place:]
        else:
            raw[place : place + 8] = rng.choice(NUMBERS).to_bytes(200, "little", signed=True)[:8]
    return bytes(raw)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A damaged copy of a file."""
    parts = split(data) if rng.random() < 0.85 else None
    if parts is None:
        return scramble(data, rng)
    header, body = parts
    try:
        for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
            metadata = header["__metadata__"]
            choice = rng.random()
            if choice < 0.5 and NETWORK in metadata:
                change(metadata[NETWORK], rng)
            elif choice < 0.7 and PACKED in metadata:
                change(metadata[PACKED], rng)
            elif choice < 0.8:
                change(header, rng)
            elif choice < 0.9:
                body = resize(header, body, rng)
            else:
                body = scramble(body, rng)[: len(body)].ljust(len(body), b"\0")
        return join(header, body)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        # The document is no longer one that these mutations understand.
        return scramble(data, rng)


# Running


def seeds(folder: Path) -> list[bytes]:
    """The files of a corpus."""
    return [path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()]


def keep(data: bytes, findings: Path) -> None:
    """Writes an input that failed, and says where."""
    findings.mkdir(parents=True, exist_ok=True)
    path = findings / f"failed-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    print(f"kept as {path}", file=sys.stderr)


def loop(corpus: list[bytes], seconds: float, seed: int, path: Path, findings: Path) -> int:
    """Mutates inputs at random; one with an outcome that is new joins the others. Returns the count of failures."""
    rng = random.Random(seed)
    pool, failures, count = list(corpus), 0, 0
    met: dict[str, tuple[int, str]] = {}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutate(rng.choice(pool), rng)[:LARGEST]
        count += 1
        try:
            where, reason = check(data, path)
        except Exception:
            failures += 1
            traceback.print_exc()
            keep(data, findings)
            continue
        if (where not in met or (where == "sound" and rng.random() < 0.2)) and len(pool) < 2000:
            pool.append(data)
        times, _ = met.get(where, (0, ""))
        met[where] = times + 1, reason
    for where, (times, reason) in sorted(met.items(), key=lambda item: -item[1][0]):
        print(f"{times:8}  {where:20} {reason[:120]!r}")
    print(f"{count} inputs, {len(met)} outcomes, {failures} failures")
    return failures


def with_atheris(folder: Path, seconds: float, path: Path, findings: Path) -> None:
    """Coverage-guided, with the same mutations; does not return."""
    import atheris

    with atheris.instrument_imports(include=["billhook"]):
        import billhook.formats
        import billhook.runtime.reference  # noqa: F401

    def one(data: bytes) -> None:
        check(data, path)

    def custom(data: bytes, largest: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.2:
            return atheris.Mutate(data, largest)
        return mutate(data, rng)[:largest]

    grown = findings / "grown"
    grown.mkdir(parents=True, exist_ok=True)
    flags = [f"-max_total_time={seconds:.0f}", f"-max_len={LARGEST}", f"-artifact_prefix={findings}/", "-timeout=20"]
    flags += [f"-rss_limit_mb={MAX_MEMORY >> 20}", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *flags, str(grown), str(folder)], one, custom_mutator=custom)
    atheris.Fuzz()


def limit_memory() -> None:
    """Makes the allocation of a claimed size fail with MemoryError, which is a finding."""
    try:
        import resource
    except ImportError:
        return  # not a Unix
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loop", action="store_true", help="not Atheris, even where it is installed")
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--findings", type=Path, default=Path(tempfile.gettempdir()) / "billhook-fuzz")
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE")
    options = parser.parse_args()
    limit_memory()
    with tempfile.TemporaryDirectory(prefix="billhook-fuzz-") as folder:
        path = Path(folder) / "net"
        if options.replay:
            for file in options.replay:
                print(f"{file.name}: {' '.join(check(file.read_bytes(), path))}")
            return 0
        try:
            if options.loop:
                raise ImportError
            import atheris  # noqa: F401
        except ImportError:
            return bool(loop(seeds(options.corpus), options.seconds, options.seed, path, options.findings))
        with_atheris(options.corpus, options.seconds, path, options.findings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
