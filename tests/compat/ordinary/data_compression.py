"""The same text through every compressor, and archives with files in them."""

import bz2, gzip, io, lzma, os, tarfile, zipfile, zlib

TEXT = b"the quick brown fox jumps over the lazy dog\n" * 500
for module in (zlib, gzip, bz2, lzma):
    packed = module.compress(TEXT)
    print(module.__name__, len(packed) < 500, module.decompress(packed) == TEXT)
os.makedirs("tree/sub")
for name in ("tree/a.txt", "tree/sub/b.txt"):
    with open(name, "wb") as file:
        file.write(TEXT[:100])
with zipfile.ZipFile("x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.write("tree/a.txt")
    archive.writestr("made/up.txt", "text")
with zipfile.ZipFile("x.zip") as archive:
    print(archive.namelist(), archive.testzip(), archive.read("made/up.txt"))
for kind in ("gz", "bz2", "xz"):
    with tarfile.open(f"x.tar.{kind}", f"w:{kind}") as archive:
        archive.add("tree")
    with tarfile.open(f"x.tar.{kind}") as archive:
        print(kind, sorted(archive.getnames()))
        archive.extractall(f"out-{kind}", filter="data")
    print(os.path.getsize(f"out-{kind}/tree/sub/b.txt"))
try:
    zlib.decompress(b"not compressed")
except zlib.error as error:
    print(error)
print(gzip.open(io.BytesIO(gzip.compress(b"a\nb\n")), "rt").readlines())
