"""A web server in a sandbox that has no network, reached through a tunnel."""

import time
import urllib.error
import urllib.request

from ringfence import Sandbox

with Sandbox.create(ttl=120) as sb:
    sb.files.write("site/index.html", "<h1>served from inside</h1>")
    sb.start(["python3", "-m", "http.server", "8000", "--bind", "127.0.0.1", "--directory", "site"])

    # The sandbox cannot reach us or anybody; the bytes travel over its one channel.
    with sb.tunnel(8000) as tunnel:
        print("try it in a browser while this runs:", tunnel.url.split(":")[0], "on a loopback port")
        for _ in range(50):  # the server inside takes a moment to listen
            try:
                page = urllib.request.urlopen(tunnel.url, timeout=5).read().decode()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        print(page)
