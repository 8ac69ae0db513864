"""A stand-in for the Hugging Face hub on this machine: small files, and the ways in which a server fails."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"
FOLDER = f"/datasets/Salesforce/wikitext/resolve/{REVISION}/wikitext-103-raw-v1/"


class Hub:
    """`files` by path, which may be changed; `asked`, a line for every request: what, which file, from which byte."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cuts_after: dict[str, int] = {}  # bytes of an answer, at which the connection is cut, once
        self.dies_after: dict[str, int] = {}  # at which it is cut, and nothing is answered from then on
        self.dead = False
        self.hangs_after: dict[str, int] = {}  # at which nothing more comes
        self.ranges = True  # whether it can begin in the middle
        self.reached, self.ended = threading.Event(), threading.Event()
        self.url = ""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.close_connection = True
            if hub.dead:
                return
            name, content = self.answer()
            for many, then in ((hub.cuts_after, None), (hub.dies_after, self.die), (hub.hangs_after, self.hang)):
                if name in many:
                    self.wfile.write(content[: many.pop(name)])
                    self.wfile.flush()
                    if then:
                        then()
                    return
            self.wfile.write(content)

        def answer(self) -> tuple[str, bytes]:
            name = self.path.removeprefix(FOLDER)
            whole = hub.files.get(name, b"")
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            hub.asked.append(f"{self.command} {name} {start}")
            content = whole[start:] if hub.ranges else whole
            partial = hub.ranges and start > 0
            self.send_response((206 if partial else 200) if content else 416 if whole else 404)
            if partial:
                self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(whole).hexdigest()}"')
            self.send_header("X-Repo-Commit", REVISION)
            self.end_headers()
            return name, content

        def die(self) -> None:
            hub.dead = True

        def hang(self) -> None:
            hub.reached.set()
            hub.ended.wait(60)

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that was killed is none of a server's worries."""

    server = Server(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
