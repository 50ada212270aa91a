"""Settings in TOML, INI and properties of the command line."""

import argparse, configparser, io, tomllib

print(
    tomllib.loads("""
title = "x"
[owner]
dob = 1979-05-27T07:32:00-08:00
[[servers]]
ports = [8000, 8001]
ratio = 0.5
""")
)
parser = configparser.ConfigParser()
parser.read_string("[DEFAULT]\nroot=/srv\n[site]\npath=%(root)s/www\ndebug=yes\n")
print(parser["site"]["path"], parser.getboolean("site", "debug"))
out = io.StringIO()
parser.write(out)
print(out.getvalue())
options = argparse.ArgumentParser(prog="tool", description="A tool.")
options.add_argument("file")
options.add_argument("-n", "--number", type=int, default=3, help="how many (default: %(default)s)")
print(options.parse_args(["in.txt", "-n7"]))
options.print_help()
try:
    options.parse_args(["--number", "x"])
except SystemExit as end:
    print("ends with", end.code)
