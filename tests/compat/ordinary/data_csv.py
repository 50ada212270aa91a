"""Write a table, read it back, add it up."""

import csv, io, statistics

ROWS = [("city", "day", "mm"), ("Oslo", 1, 2.5), ('Q"uoted', 2, 0), ("com,ma", 3, 11.25), ("line\nbreak", 4, 7)]
with open("rain.csv", "w", newline="") as file:
    csv.writer(file, quoting=csv.QUOTE_NONNUMERIC).writerows(ROWS)
print(open("rain.csv", newline="").read())
with open("rain.csv", newline="") as file:
    table = list(csv.DictReader(file, quoting=csv.QUOTE_NONNUMERIC))
print([row["city"] for row in table], statistics.mean(row["mm"] for row in table))
print(csv.Sniffer().sniff("a;b;c\n1;2;3\n").delimiter)
out = io.StringIO()
csv.writer(out, dialect="excel-tab").writerow(["x", "y z", "\t"])
print(repr(out.getvalue()))
