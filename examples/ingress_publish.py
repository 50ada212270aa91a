"""A web server in a sandbox without a network, with a URL: private, by a link, then for everybody."""

import os
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from ringfence import Sandbox


def fetch(url: str, **headers: str) -> str:
    """What the URL answers. Only browsers resolve names below .localhost, so the name goes into the Host header."""
    parts = urlsplit(url)
    request = urllib.request.Request(f"http://127.0.0.1:{parts.port}{parts.path or '/'}", headers=headers)
    request.add_header("Host", parts.netloc)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.read().decode().strip()
    except urllib.error.HTTPError as error:
        return f"refused with {error.code}"


with Sandbox.create(ttl=120) as sb:
    sb.files.write("site/index.html", "<h1>served from inside</h1>")
    sb.start(["python3", "-m", "http.server", "8000", "--directory", "site"])

    url = sb.publish(8000)  # the first request waits until the server listens
    print("a stranger:", fetch(url))
    print("its owner:", fetch(url, **{"X-Ringfence-Access": os.environ["RINGFENCE_KEY"]}))

    link = sb.share(8000, ttl=60)
    print("a guest:", fetch(url, **{"X-Ringfence-Access": link.token or ""}))
    sb.unshare(8000, link.id)
    print("a guest, revoked:", fetch(url, **{"X-Ringfence-Access": link.token or ""}))

    sb.publish(8000, public=True)
    print("everybody:", fetch(url))
