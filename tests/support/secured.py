"""TLS contexts for servers at 127.0.0.1 and their clients."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trustme

NO_TRUSTME = "trustme (cryptography) has no build for this Python"


def server_context(authority: trustme.CA) -> ssl.SSLContext:
    """Return a TLS context for servers, with a certificate from `authority`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = authority.issue_cert("127.0.0.1")
    certificate.configure_cert(context)  # pyright: ignore[reportUnknownMemberType] - it also takes a type of pyOpenSSL
    return context


class Secured:
    """A certificate authority, and a certificate for 127.0.0.1.

    Attributes:
        authority: The certificate authority.
        server: The TLS context for servers.
        client: The TLS context for clients that trust the authority.
        unknown: The TLS context for servers of an authority that no client trusts.
        ca_file: The path of the authority's certificate.
    """

    def __init__(self, folder: Path) -> None:
        import trustme  # noqa: PLC0415 - its dependencies have no build for some Pythons

        self.authority = trustme.CA()
        self.ca_file = str(folder / "ca.pem")
        self.authority.cert_pem.write_to_path(self.ca_file)
        self.server = server_context(self.authority)
        self.client = self.trusting()
        self.unknown = server_context(trustme.CA())

    def trusting(self) -> ssl.SSLContext:
        """Return a TLS context for clients that trust the authority."""
        return ssl.create_default_context(cafile=self.ca_file)
