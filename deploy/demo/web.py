"""The demo's service: a small HTTP server that says which version answers and who it is.

It listens on $PORT, finishes the requests in hand on SIGTERM, and needs nothing but Python's standard library, so the
same file runs as a plain process and inside the container image that `image.py` builds.
"""

import http.server
import os
import signal
import socket
import threading


class Hello(http.server.BaseHTTPRequestHandler):
    """Answers every GET with version, host and process."""

    def do_GET(self) -> None:
        body = f"{os.environ.get('APP_VERSION', '1')} {socket.gethostname()} {os.getpid()}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: the demo asks many times a second."""


class Server(http.server.ThreadingHTTPServer):
    """Waits for open requests before it ends, and takes a backlog of more than five."""

    daemon_threads = False
    request_queue_size = 128


def main() -> None:
    """Serves until SIGTERM."""
    port = int(os.environ.get("PORT", "80"))
    server = Server(("0.0.0.0", port), Hello)  # noqa: S104 - a container's port is published by its engine

    def stop(signum: int, frame: object) -> None:
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    print(f"version {os.environ.get('APP_VERSION', '1')} listens on {port}", flush=True)  # noqa: T201
    server.serve_forever(poll_interval=0.1)
    server.server_close()


if __name__ == "__main__":
    main()
