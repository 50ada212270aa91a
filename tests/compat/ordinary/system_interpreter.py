"""Start the interpreter again: as a module, with -c, isolated, with a syntax error, a venv, doctest and unittest."""

import os, pathlib, subprocess, sys


def python(*words, **options):
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, **options)
    print(done.returncode, done.stdout.strip()[-300:], done.stderr.strip().splitlines()[-1:])


python("-c", "print(6 * 7)")
python("-m", "json.tool", "--compact", input='{"a": [1, 2]}')
python("-I", "-c", "import sys; print(sys.flags.isolated)")
python("-c", "def broken(:")
python("-c", "import sys; sys.exit('words')")
python("-", input="print('from stdin')")
pathlib.Path("sums.py").write_text('"""\n>>> 1 + 1\n2\n>>> 1 + 2\n4\n"""\n')
python("-m", "doctest", "sums.py")
pathlib.Path("test_it.py").write_text(
    "import unittest\nclass T(unittest.TestCase):\n    def test_a(self): self.assertEqual(1, 1)\n"
)
python("-m", "unittest", "-q", "test_it")
pathlib.Path("beside.py").write_text("X = 5\n")
python("-c", "import beside; print(beside.X)")
python("-c", "import beside", cwd="/tmp", env={**os.environ, "PYTHONPATH": os.getcwd()})
python("-m", "compileall", "-q", "beside.py")
print(os.path.exists("__pycache__"))
python("-W", "error", "-c", "import warnings; warnings.warn('w')")
python("-m", "timeit", "-n", "1", "-r", "1", "-q", "pass") if False else python("-V")
python("-m", "venv", "--without-pip", "env")
print(os.path.exists("env/bin/python"), os.path.exists("env/pyvenv.cfg"))
