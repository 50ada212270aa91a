"""Make a tree of files, walk it, rename, link, change modes and times, and remove it."""

import glob, os, pathlib, shutil, stat

base = pathlib.Path("work")
for name in ("a/b/c.txt", "a/d.txt", "e.txt"):
    path = base / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(name)
print(sorted(str(p) for p in base.rglob("*")), sorted(glob.glob("work/**/*.txt", recursive=True)))
os.symlink("e.txt", base / "link")
os.link(base / "e.txt", base / "hard")
print(os.readlink(base / "link"), (base / "link").resolve().name, os.stat(base / "hard").st_nlink)
os.chmod(base / "e.txt", 0o640)
os.utime(base / "e.txt", (10**9, 10**9))
print(oct(stat.S_IMODE(os.stat(base / "e.txt").st_mode)), os.path.getmtime(base / "hard"))
os.replace(base / "a/d.txt", base / "moved.txt")
shutil.copytree(base, "copy", symlinks=True)
print(sorted(os.listdir("copy")), os.path.islink("copy/link"))
for top, folders, files in sorted(os.walk("copy")):
    print(top, sorted(folders), sorted(files))
shutil.rmtree(base)
print(base.exists(), os.path.commonpath(["/a/b", "/a/c"]), os.path.relpath("/x/y", "/x/z"))
for wrong in (
    lambda: open("nowhere/x", "w"),
    lambda: os.rmdir("copy"),
    lambda: os.mkdir("copy"),
    lambda: open("/etc/hostname", "w"),
):
    try:
        wrong()
    except OSError as error:
        print(type(error).__name__, os.path.basename(error.filename))
