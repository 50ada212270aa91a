"""Regular expressions: groups, look-around, substitution, scanning."""

import re

LOG = """2024-01-02 10:00:01 ERROR disk full on /dev/sda1
2024-01-02 10:00:02 INFO ok
2024-01-03 11:59:59 WARNING 87% used on /dev/sdb2"""
LINE = re.compile(r"^(?P<day>\d{4}-\d\d-\d\d) (?P<time>[\d:]+) (?P<level>[A-Z]+) (?P<rest>.*)$", re.MULTILINE)
for found in LINE.finditer(LOG):
    print(found.groupdict())
print(re.sub(r"(\w+)@(\w+)", r"\2 at \1", "me@home you@work"))
print(re.split(r"(?<=[.!?])\s+", "One. Two! Three? Four"))
print(re.findall(r"(?i)\b(?!the)\w+(?=\s+cat)", "the black cat, The cat, a Grey  cat"))
scanner = re.Scanner([(r"\d+", lambda s, t: int(t)), (r"[+*/-]", lambda s, t: t), (r"\s+", None)])
print(scanner.scan("12 + 3*4 ?"))
try:
    re.compile("(unclosed")
except re.error as error:
    print(error)
