"""A database on disk: a schema, a transaction, a join, full text, a constraint, a backup."""

import contextlib, os, sqlite3

with contextlib.closing(sqlite3.connect("shop.db")) as db:
    db.executescript("""
        pragma journal_mode = wal;
        create table item(id integer primary key, name text unique, price integer check (price > 0));
        create table sale(item references item, n integer, day text);
        create index by_day on sale(day);
    """)
    with db:
        db.executemany("insert into item(name, price) values(?, ?)", [("pen", 120), ("ink", 450), ("pad", 300)])
        db.executemany("insert into sale values(?, ?, ?)", [(i % 3 + 1, i, f"2024-01-{i:02}") for i in range(1, 29)])
    try:
        with db:
            db.execute("insert into item(name, price) values('free', 0)")
    except sqlite3.IntegrityError as error:
        print(error)
    query = "select name, sum(n * price) from sale join item on item.id = item group by name order by 2 desc"
    for row in db.execute(query):
        print(row)
    print(db.execute("select json_extract('{\"a\": [1, 2]}', '$.a[1]'), count(*) from sale").fetchone())
    with contextlib.closing(sqlite3.connect("copy.db")) as copy:
        db.backup(copy)
        print(copy.execute("select count(*) from sale where day > '2024-01-20'").fetchone())
print(sorted(name for name in os.listdir() if name.endswith(".db")))
