"""A sandbox that stays: files, a background process fed through its stdin, changes watched."""

from ringfence import Sandbox

UPPERCASE = "import sys\nfor line in sys.stdin: print(line.strip().upper(), flush=True)"

with Sandbox.create(ttl=120, labels={"example": "session"}) as sb:
    sb.files.write("notes/today.txt", "buy bread\n")
    print("files:", [entry.path for entry in sb.files.list("notes").entries])

    # Each call is a program of its own; the files stay between them.
    sb.run("open('notes/today.txt', 'a').write('call home\\n')").check()
    print("shell:", sb.exec("wc -l < notes/today.txt").check().stdout.strip(), "lines")

    with sb.files.watch("notes") as changes:
        sb.exec("rm notes/today.txt").check()
        print("watched:", next(iter(changes)).type)

    # A process in the background goes on by itself; its handle is only its pid.
    process = sb.start(code=UPPERCASE, stdin_open=True)
    process.send_input("hello\n")
    process.send_input("goodbye\n", close=True)
    print("process said:", process.wait().stdout.split())

    print("extended until", sb.extend(300).expires_at)
print("stopped:", sb.info.state)
