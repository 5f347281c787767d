import io
import tarfile
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image


@pytest.fixture
def make_shard(tmp_path):
    """Write (member name, bytes) pairs to a real shard, in order; `.gz` names are packed."""

    def make(members, name="a.tar") -> Path:
        path = tmp_path / name
        with tarfile.open(path, "w:gz" if name.endswith(".gz") else "w") as archive:
            for member, data in members:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return path

    return make


@pytest.fixture(scope="session")
def png() -> bytes:
    """A 6 x 4 picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (10, 20, 30)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def wav() -> bytes:
    """0.1 s of stereo noise at 8 kHz."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).normal(size=(800, 2)) * 0.1
    soundfile.write(buffer, noise, 8000, format="WAV")
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Serves `files` on loopback at /HOW/NAME, where HOW says what goes wrong.

    Attributes:
        files: name -> bytes.
        asked: number of requests for each path.
        url: its address, without a slash at the end.
        going_on: what stalls ends when this is set.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.going_on = threading.Event()

    def handle_error(self, request, client_address):
        """Clients hang up; that is not worth a traceback."""


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        self.server.asked[self.path] += 1
        _, how, name = self.path.partition("?")[0].split("/", 2)
        data = self.server.files.get(name)
        if how == "moved":
            return self._head(302, Location=f"/plain/{name}")
        if how == "loop":
            return self._head(302, Location=self.path)
        if how == "packing" and "gzip" in self.headers["Accept-Encoding"]:
            data = None  # a server that would pack it once more
        if how == "token" and self.headers["Authorization"] != "Bearer secret":
            return self._head(401)
        if how == "denied":
            return self._head(403)
        if how == "flaky" and self.server.asked[self.path] < 3:
            return self._head(503)
        if how == "page":
            data = b"<!DOCTYPE html><html>" + b"please log in " * 100 + b"</html>"
        if data is None:
            return self._head(404)
        if how == "endless":
            return self._endless()
        if how != "unmeasured":
            self._head(200, Content_Length=str(len(data)))
        else:
            self._head(200)
        half = len(data) // 2
        if how in ("short", "stall", "drip"):
            self.wfile.write(data[:half])
            if how == "stall":
                self.server.going_on.wait(30)
            for at in range(half, len(data)) if how == "drip" else ():
                if self.server.going_on.wait(0.02):
                    return None
                self.wfile.write(data[at : at + 1])
            return None
        if how == "slow":
            self.server.going_on.wait(0.2)
        self.wfile.write(data)
        return None

    def _head(self, status, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if status != 200:
            self.send_header("Content-Length", "0")
        self.end_headers()

    def _endless(self):
        self._head(200)
        while not self.server.going_on.is_set():
            self.wfile.write(bytes(2**16))

    def log_message(self, format, *args):
        """Silent."""


@pytest.fixture
def server():
    """See `Server`."""
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.going_on.set()
        running.shutdown()
        thread.join()
