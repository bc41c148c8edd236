"""A stand-in kubelet: a process of that name with a healthz on 127.0.0.1:10248; 500 while /run/kubelet-ill exists."""

import ctypes
import http.server
from pathlib import Path

ILL = Path("/run/kubelet-ill")
PR_SET_NAME = 15


class Healthz(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(500 if ILL.exists() else 200)
        self.end_headers()
        self.wfile.write(b"no" if ILL.exists() else b"ok")

    def log_message(self, *words: object) -> None:
        pass


ctypes.CDLL(None).prctl(PR_SET_NAME, b"kubelet", 0, 0, 0)
http.server.ThreadingHTTPServer(("127.0.0.1", 10248), Healthz).serve_forever()
