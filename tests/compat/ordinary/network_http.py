"""A web server and its client in one program: a page, a form, an error, a redirect, many at once."""

import concurrent.futures, http.server, json, threading, urllib.error, urllib.parse, urllib.request


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/old":
            return self.answer(302, Location="/new")
        if self.path.startswith("/new"):
            return self.answer(200, b"a page for " + self.path.encode())
        return self.answer(404, b"nothing")

    def do_POST(self):
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.answer(200, json.dumps(form, sort_keys=True).encode())

    def log_message(self, *_):
        pass


with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    print(urllib.request.urlopen(base + "/old").read())
    form = urllib.parse.urlencode({"a": "1 & 2", "b": "\u00fc"}).encode()
    print(urllib.request.urlopen(base + "/form", form).read())
    try:
        urllib.request.urlopen(base + "/missing")
    except urllib.error.HTTPError as error:
        print(error.code, error.read())
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        pages = pool.map(lambda n: urllib.request.urlopen(f"{base}/new/{n}").read(), range(30))
        print(len(set(pages)))
    server.shutdown()
