"""Certificates of servers at 127.0.0.1."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme


class Secured:
    """One authority, and what it certifies.

    Attributes:
        server: what secures the connections of a server.
        ca_file: the path of the authority's own certificate.
    """

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.ca_file = str(folder / "ca.pem")
        authority.cert_pem.write_to_path(self.ca_file)
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate = authority.issue_cert("127.0.0.1")
        certificate.configure_cert(self.server)  # pyright: ignore[reportUnknownMemberType] - it also takes a type of pyOpenSSL

    def trusting(self) -> ssl.SSLContext:
        """Return what a client secures its connections with."""
        return ssl.create_default_context(cafile=self.ca_file)
