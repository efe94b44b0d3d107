"""Runs nginx or haproxy as a reverse proxy for a server on another port of 127.0.0.1."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from support.ports import reserved_port
from support.programs import skip_without

_NGINX = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{upstream};
            {settings}
        }}
    }}
}}
"""
_HAPROXY = """\
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    {settings}
listen flux0
    bind 127.0.0.1:{port}
    server one 127.0.0.1:{upstream}
"""
_TIMEOUT_SECONDS = 10.0


@contextmanager
def reverse_proxy(
    program: str, settings: str, upstream: int, folder: Path
) -> Generator[str, None, None]:
    """Run the program as a reverse proxy for the port `upstream`; yield its URL.

    Skip the test if the program is not on the PATH, which needs /usr/sbin on some systems.
    """
    skip_without(program)
    port = reserved_port()
    template = _NGINX if program == "nginx" else _HAPROXY
    file = folder / f"{program}.conf"
    file.write_text(
        template.format(folder=folder, port=port, upstream=upstream, settings=settings), "utf-8"
    )
    options = ["-e", "stderr", "-c"] if program == "nginx" else ["-f"]
    running = subprocess.Popen([program, *options, str(file)], stderr=subprocess.PIPE)
    try:
        _wait_for(port, running)
        yield f"http://127.0.0.1:{port}"
    finally:
        running.kill()
        running.communicate()


def _wait_for(port: int, running: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _TIMEOUT_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if running.poll() is not None or time.monotonic() > end:
                running.kill()
                _, output = running.communicate()
                raise AssertionError(output.decode()) from None
            time.sleep(0.01)  # No event reports that the process is ready.
        else:
            return
