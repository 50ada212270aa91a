"""A class in one command: a leaky shop for every student, each with a link of its own.

python3 examples/lab/classroom.py open 12 --hours 2      # twelve sandboxes, and the table of links
python3 examples/lab/classroom.py reset 3                # number 3 broke his: as new, under the same link
python3 examples/lab/classroom.py links                  # new links, to the same places
python3 examples/lab/classroom.py close                  # everything is gone
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ringfence import Client, Sandbox

APP = Path(__file__).with_name("app.py").read_text()
PORT = 8000
AT_ONCE = 8


def seat(client, options, number):
    """One student's sandbox: the application starts with it, and again after each reset, as root inside."""
    return Sandbox.create(
        template=options.template,
        isolation=options.isolation,
        ttl=options.hours * 3600,
        labels={"lab": options.lab, "student": f"{number:02}"},
        start={"code": APP, "user": "root", "cwd": "/tmp"},
        client=client,
    )


def seats(client, options, number=None):
    """The sandboxes of this class that live, by student; only one student's when a number is given."""
    labels = {"lab": options.lab} | ({} if number is None else {"student": f"{number:02}"})
    found = Sandbox.list(labels, state="running", client=client)
    return [Sandbox.connect(each.id, client=client) for each in sorted(found, key=lambda one: one.labels["student"])]


def show(sandboxes, hours):
    """A table to hand out: whoever has a link is in, until it expires."""
    print(f"{'student':8} {'sandbox':28} link")
    for sandbox in sandboxes:
        sandbox.publish(PORT)
        link = sandbox.share(PORT, ttl=hours * 3600)
        print(f"{sandbox.info.labels['student']:8} {sandbox.id:28} {link.url}")


def main():
    """Do what the words say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("open", "links", "reset", "close"))
    parser.add_argument("number", type=int, nargs="?", help="how many students; with reset, which one")
    parser.add_argument("--lab", default="leaky-shop", help="the class's name, for two at once")
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--template", default="base")
    parser.add_argument("--isolation", default="auto", help="jail, container or gvisor")
    options = parser.parse_args()
    with Client() as client:
        if options.verb == "open":
            with ThreadPoolExecutor(AT_ONCE) as pool:
                made = list(pool.map(lambda n: seat(client, options, n), range(1, (options.number or 1) + 1)))
            show(made, options.hours)
            return 0
        found = seats(client, options, options.number)
        if not found:
            sys.exit("there is no such seat; `open` a class first")
        if options.verb == "links":
            show(found, options.hours)
        for sandbox in found if options.verb in {"reset", "close"} else []:
            sandbox.reset() if options.verb == "reset" else sandbox.stop()
            print(f"{sandbox.info.labels['student']} {'is as new' if options.verb == 'reset' else 'is gone'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
