"""A development domain in plain words: where things are, how to trust its certificate, how its names are found."""

from __future__ import annotations

from ringfence.config import ServerSettings


def explained(settings: ServerSettings, port: int) -> str:
    """What `ringfence serve --dev-domain` says when it serves, ready to be pasted into a shell."""
    domain, place = settings.dev_domain, settings.dev_dir
    return f"""
Ports inside sandboxes are at https://<port>-<id>.{domain}:{port}, the API also at https://api.{domain}:{port}.

Trust: the certificate is signed by an authority made for this machine, good for {domain} alone.
  export SSL_CERT_FILE={place}/bundle.crt        # Python, curl, OpenSSL: with what this machine trusts already
  export NODE_EXTRA_CA_CERTS={place}/ca.crt      # Node
  (browsers: import {place}/ca.crt as an authority)

Names: nobody but this machine knows {domain}.
  sudo ringfence hosts --write                   # in /etc/hosts, one by one; again after a port was published
  sudo ringfence hosts --dns                     # or all of them, by a small name server at 127.0.0.1

E2B's SDKs: export E2B_DOMAIN={domain}:{port}
"""
