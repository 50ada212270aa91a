"""Count, wrap, diff and fill in words."""

import collections, difflib, re, string, textwrap, unicodedata

TEXT = """It was the best of times, it was the worst of times, it was the age of wisdom,
it was the age of foolishness, it was the epoch of belief, it was the epoch of incredulity."""
words = re.findall(r"[a-z]+", TEXT.lower())
print(collections.Counter(words).most_common(5))
print(textwrap.fill(TEXT, 40))
print(*difflib.unified_diff(["a", "b", "c"], ["a", "x", "c"], lineterm=""), sep="\n")
print(string.Template("$who likes $what").substitute(who="tim", what="kung pao"))
print(unicodedata.normalize("NFD", "\u00e9").encode(), unicodedata.name("\u2603"), "\u00df".upper(), "\u0130".lower())
print(f"{'left':<10}|{'mid':^10}|{'right':>10}|{3.14159:.3f}|{1234567:,}|{255:#x}|{0.25:%}")
