"""What a program knows about itself: variables, directory, ids, limits of its own, arguments, encodings."""

import getpass, grp, locale, os, pwd, resource, sys

print(sorted(os.environ.items()))
print(os.getcwd(), os.path.expanduser("~"), getpass.getuser(), pwd.getpwuid(os.getuid()), os.getgid())
print(grp.getgrgid(os.getgid()).gr_name, os.getgroups(), oct(os.umask(0o022)))
print(sys.argv, sys.executable, sys.prefix, sys.version_info[:2], sys.byteorder, sys.maxsize)
print(sys.getfilesystemencoding(), sys.stdout.encoding, sys.stdin.encoding, sys.stdout.errors, sys.stderr.errors)
print(
    locale.getlocale(),
    locale.setlocale(locale.LC_ALL),
    locale.getpreferredencoding(),
    locale.localeconv()["decimal_point"],
)
for name in ("CORE", "CPU", "DATA", "FSIZE", "NOFILE", "STACK"):
    print(name, resource.getrlimit(getattr(resource, f"RLIMIT_{name}")))
print(sys.stdin.read() == "", sys.stdin.isatty(), sys.stdout.isatty(), os.isatty(2))
print(sys.path[0], [place for place in sys.path if "dist-packages" in place])
