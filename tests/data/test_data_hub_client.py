"""``hf:OWNER/NAME`` through the real client: a local server that has the files, and one that is not there."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import pytest
from PIL import Image

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

REVISION = 40 * "b"


def parquet(labels: list[int]) -> bytes:
    images = []
    for label in labels:
        picture = BytesIO()
        Image.new("RGB", (4, 4), (label * 90, 0, 0)).save(picture, "PNG")
        images.append({"bytes": picture.getvalue(), "path": None})
    table = pa.table({"image": images, "label": pa.array(labels, pa.int64())})
    content = BytesIO()
    pq.write_table(table, content)
    return content.getvalue()


FILES = {"data/train-00000-of-00001.parquet": parquet([0, 1, 1]), "data/test-00000-of-00001.parquet": parquet([1, 0])}


class Hub(BaseHTTPRequestHandler):
    """The few answers of the hub that a snapshot of a public data set needs."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        headers = {"X-Repo-Commit": REVISION}
        if path.startswith("/api/datasets/someone/pictures/tree/"):
            body = json.dumps([self._entry(name, content) for name, content in FILES.items()]).encode()
        elif path.startswith("/api/datasets/someone/pictures"):
            siblings = [{"rfilename": name} for name in FILES]
            document = {"id": "someone/pictures", "sha": REVISION, "siblings": siblings}
            body = json.dumps(document | {"private": False, "gated": False, "tags": [], "downloads": 0}).encode()
        else:
            name = next((name for name in FILES if path.endswith(f"/someone/pictures/resolve/{REVISION}/{name}")), None)
            if name is None:
                self.send_error(404)
                return
            body = FILES[name]
            headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()}"'
        self.send_response(200)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    @staticmethod
    def _entry(name: str, content: bytes) -> dict[str, object]:
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def log_message(self, *args: object) -> None:
        """Silent."""


def classes_of(address: str, cache: object, **more: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the client reads its settings once."""
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1"} | more
    command = [sys.executable, "-m", "billhook", "classes", "hf:someone/pictures", "--json"]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_data_set_from_a_server_and_then_from_the_cache(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        first = classes_of(address, tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout) == json.loads(classes_of(address, tmp_path).stdout)  # the server is gone
    assert '"train"' in first.stdout


def test_no_network_is_one_clear_line(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.server_close()  # nobody listens on its port now
    done = classes_of(f"http://127.0.0.1:{server.server_port}", tmp_path)
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["message"].startswith("cannot download someone/pictures from the Hugging Face hub: ")
    assert "check the name and the network" in error["hint"]
    assert "Traceback" not in done.stderr
