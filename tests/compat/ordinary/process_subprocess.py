"""Start programs: pipes, input, exit codes, signals, timeouts, pipelines, a missing command, environment, cwd."""

import os, signal, subprocess, sys

run = subprocess.run
print(run(["echo", "hello"], capture_output=True, text=True).stdout)
print(run(["sort", "-r"], input="b\na\nc\n", capture_output=True, text=True).stdout.split())
print(run("exit 3", shell=True).returncode, run("kill -TERM $$", shell=True).returncode)
print(run("seq 100 | grep 7 | wc -l", shell=True, capture_output=True, text=True).stdout.strip())
try:
    run(["sleep", "10"], timeout=0.2)
except subprocess.TimeoutExpired as error:
    print("timed out", error.cmd)
try:
    run(["no-such-command"])
except FileNotFoundError as error:
    print(error.filename)
try:
    run(["false"], check=True)
except subprocess.CalledProcessError as error:
    print(error)
code = "import os, sys; print(os.environ.get('A'), os.getcwd(), sys.argv[1:], file=sys.stderr)"
done = run(
    [sys.executable, "-c", code, "x y"], env={**os.environ, "A": "b"}, cwd="/tmp", capture_output=True, text=True
)
print(done.stderr, done.returncode)
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdin.write(b"through cat")
child.stdin.close()
print(child.stdout.read(), child.wait())
child = subprocess.Popen(["sleep", "100"], start_new_session=True)
os.killpg(child.pid, signal.SIGINT)
print(child.wait())
print(len(run(["head", "-c", "1000000", "/dev/zero"], capture_output=True).stdout))
