"""TLS towards endpoints."""

import functools
import ssl


@functools.cache
def trust() -> ssl.SSLContext:
    """Who is trusted to say whose a certificate is: whom the system trusts, or SSL_CERT_FILE and SSL_CERT_DIR name."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
