"""A page served inside a sandbox, fetched at its own https name by an ordinary program; see README.md."""

import subprocess
import sys
import urllib.request

from ringfence import Sandbox

with Sandbox.create(ttl=120) as sb:
    sb.files.write("site/index.html", "<h1>served from inside</h1>")
    sb.start(["python3", "-m", "http.server", "8000", "--directory", "site"])

    url = sb.publish(8000, public=True)
    print("published:", url)
    if "--dns" not in sys.argv:  # a name server knows the name already
        subprocess.run([sys.executable, "-m", "ringfence", "hosts", "--write"], check=True)

    with urllib.request.urlopen(url, timeout=20) as answer:  # the name is resolved and the certificate is checked
        print("fetched:", answer.read().decode().strip())
