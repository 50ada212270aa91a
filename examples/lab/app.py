"""A web application with holes in it, for a class to find. It runs as root, and only ever inside a sandbox.

Five rooms, five holes: SQL injection, command injection, path traversal, template injection, an unpickled cookie.
"""

import base64
import html
import http.server
import os
import pathlib
import pickle
import sqlite3
import subprocess
import urllib.parse

PLACE = pathlib.Path("shop")
FLAG = "flag{the-first-of-five}"
PAGE = """<!doctype html><title>The leaky shop</title><h1>The leaky shop</h1><p>Hello {user}.</p><pre>{body}</pre>
<form action=/search>search <input name=q></form>
<form action=/ping>is it up? <input name=host></form>
<form action=/read>read a leaflet <input name=name value=hours.txt></form>
<form action=/card>a greeting card for <input name=name></form>"""


def furnish():
    """A database with something worth stealing, and a leaflet."""
    (PLACE / "leaflets").mkdir(parents=True, exist_ok=True)
    (PLACE / "leaflets" / "hours.txt").write_text("open from nine to five")
    (PLACE / "secret.txt").write_text(FLAG)
    with sqlite3.connect(PLACE / "shop.db") as db:
        db.executescript(
            "drop table if exists goods; drop table if exists users;"
            "create table goods (name text, price int); create table users (name text, password text);"
            "insert into goods values ('a kettle', 20), ('a lamp', 35);"
        )
        db.execute("insert into users values ('admin', ?)", (FLAG,))


def search(query):
    """SQL injection: try  ' union select name, password from users --"""
    with sqlite3.connect(PLACE / "shop.db") as db:
        rows = db.execute(f"select name, price from goods where name like '%{query.get('q', '')}%'").fetchall()
    return "\n".join(f"{name}: {price}" for name, price in rows)


def ping(query):
    """Command injection: try  example.com; id"""
    done = subprocess.run(f"echo looking for {query.get('host', '')}", shell=True, capture_output=True, text=True)
    return done.stdout + done.stderr


def read(query):
    """Path traversal: try  ../secret.txt"""
    return (PLACE / "leaflets" / query.get("name", "hours.txt")).read_text()


def card(query):
    """Template injection: try  {open('/etc/passwd').read()}"""
    return eval('f"""Dear ' + query.get("name", "friend") + ', congratulations."""', {})


ROOMS = {"/search": search, "/ping": ping, "/read": read, "/card": card, "/": lambda query: "Welcome."}


class Shop(http.server.BaseHTTPRequestHandler):
    """Answers a request, and believes everything it says."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def user(self):
        """An unpickled cookie: `profile` is base64 of whatever the visitor likes."""
        for part in (self.headers["Cookie"] or "").split(";"):
            name, _, value = part.strip().partition("=")
            if name == "profile":
                return str(pickle.loads(base64.b64decode(value)))
        return "stranger"

    def do_GET(self):
        parts = urllib.parse.urlsplit(self.path)
        room = ROOMS.get(parts.path)
        status, body, user = 200, "no such room", "stranger"
        try:
            user = self.user()
            body = room(dict(urllib.parse.parse_qsl(parts.query))) if room else body
        except Exception as error:
            status, body = 500, f"{type(error).__name__}: {error}"
        data = PAGE.format(user=html.escape(user), body=html.escape(body)).encode()
        self.send_response(status if room else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    furnish()
    http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8000"))), Shop).serve_forever()
