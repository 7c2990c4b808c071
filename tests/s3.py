"""An S3 server on loopback for tests: moto's, in a process of its own, in front of which requests fail as asked.

    def test_x(s3: s3.Server) -> None:          # the fixture in conftest.py; it sets AWS_ENDPOINT_URL and credentials,
        url = s3.bucket()                       # for this process and those that it starts; "s3://bucket-1"
        s3.fail("PUT .*tar", status=503)        # the next request that looks like this, once
        s3.fail("UploadPart", times=2, status=500)
        s3.fail("GetObject", cut=1_000)         # its answer ends after 1,000 bytes of the body
        s3.fail("PUT", lose=True)               # carried out, but the connection closes without an answer
        s3.fail("PUT", times=None)              # from now on all of them: an error that stays
        ...
        s3.requests()                           # what was asked in this test: ["PutObject PUT /bucket-1/a", ...]
        s3.uploads(url)                         # multipart uploads that were begun, neither completed nor aborted

A request is matched (`re.search`) as "OPERATION METHOD /bucket/key?query".
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
    "no_proxy": "*",
}
_CONTROL = "/-/control"
_SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, -"}
_CODES = {403: "AccessDenied", 404: "NoSuchUpload", 500: "InternalError", 503: "SlowDown"}
_OPERATIONS = [
    ("CreateMultipartUpload", r"^POST .*\?uploads"),
    ("CompleteMultipartUpload", r"^POST .*\buploadId="),
    ("AbortMultipartUpload", r"^DELETE .*\buploadId="),
    ("UploadPart", r"^PUT .*\buploadId="),
    ("DeleteObjects", r"^POST .*\?delete"),
    ("ListObjectsV2", r"^GET .*\blist-type=2"),
    ("PutObject", r"^PUT /[^/]+/."),
    ("GetObject", r"^GET /[^/]+/."),
    ("HeadObject", r"^HEAD /[^/]+/."),
    ("DeleteObject", r"^DELETE /[^/]+/."),
]


class Server:
    """A running server.

    Args:
        url: Where it listens.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._num_buckets = 0

    def bucket(self) -> str:
        """Make an empty bucket; return its address."""
        self._num_buckets += 1
        name = f"bucket-{self._num_buckets}"
        self._ask(f"/{name}", method="PUT")
        return f"s3://{name}"

    def fail(
        self,
        requests: str,
        *,
        times: int | None = 1,
        status: int = 503,
        cut: int | None = None,
        lose: bool = False,
    ) -> None:
        """Let the next requests that look so fail.

        Args:
            requests: A regular expression for "OPERATION METHOD /bucket/key?query".
            times: How often; None is for ever.
            status: Refuse them with this one, and S3's code for it; 200 only pretends that they were carried out.
            cut: Instead, carry them out and close the connection after so many bytes of the answer's body.
            lose: Instead, carry them out and close the connection without an answer.
        """
        self._control(fault={"requests": requests, "times": times, "status": status, "cut": cut, "lose": lose})

    def requests(self) -> list[str]:
        """List what was asked since `reset`."""
        found: list[str] = self._control()
        return found

    def reset(self) -> None:
        """Forget faults and requests; the buckets stay."""
        self._control(reset=True)

    def uploads(self, bucket: str) -> list[str]:
        """List the keys of a bucket's unfinished multipart uploads."""
        answer = self._ask(f"/{bucket.removeprefix('s3://').split('/')[0]}?uploads")
        return re.findall("<Upload>.*?<Key>(.*?)</Key>", answer.decode(), re.DOTALL)

    def _control(self, **what: Any) -> Any:
        return json.loads(self._ask(_CONTROL, method="POST", data=json.dumps(what).encode()))

    def _ask(self, path: str, *, method: str = "GET", data: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, data, _SIGNED, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            body: bytes = answer.read()
            return body


@contextmanager
def running() -> Iterator[Server]:
    """Start a server; it ends with the block, or with this process."""
    with subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Server(process.stdout.readline().strip())
        finally:
            process.stdin.close()


class _Faulty:
    """A WSGI application in front of another one."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._faults: list[dict[str, Any]] = []
        self._requests: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == _CONTROL:
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self._obey(**json.loads(_body(environ)))).encode()]
        request = f"{environ['REQUEST_METHOD']} {environ['REQUEST_URI']}"
        operation = next((name for name, pattern in _OPERATIONS if re.search(pattern, request)), "-")
        fault = self._fault_of(f"{operation} {request}")
        if fault is None:
            return self._app(environ, start_response)
        if fault["cut"] is None and not fault["lose"]:
            _body(environ)  # a connection that closes before it is sent would break instead of carrying the answer
            code = _CODES.get(fault["status"], "Refused")
            start_response(f"{fault['status']} {code}", [("Content-Type", "application/xml")])
            body = f"<Error><Code>{code}</Code><Message>{code} is what\nthe test asked for.</Message></Error>".encode()
            if fault["status"] == 200:
                body = b"<Result>" + body + b"</Result>"
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
        if fault["lose"]:
            list(self._app(environ, lambda *_: None))
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionError
        return [b"".join(self._app(environ, start_response))[: fault["cut"]]]  # its Content-Length is the whole one's

    def _obey(self, fault: dict[str, Any] | None = None, reset: bool = False) -> list[str]:
        with self._lock:
            if reset:
                self._faults, self._requests = [], []
            if fault:
                self._faults.append(fault)
            return self._requests

    def _fault_of(self, request: str) -> dict[str, Any] | None:
        with self._lock:
            self._requests.append(request)
            for fault in self._faults:
                if re.search(fault["requests"], request) and fault["times"] != 0:
                    if fault["times"]:
                        fault["times"] -= 1
                    return fault
        return None


def _body(environ: dict[str, Any]) -> bytes:
    body: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    return body


def _serve() -> None:
    import logging
    import os

    os.environ |= {"S3_UPLOAD_PART_MIN_SIZE": "1", "MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": "1000000"}  # parts of any size
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    app = _Faulty(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()  # ends when the test's process does, however that ends
    os._exit(0)


if __name__ == "__main__":
    _serve()
