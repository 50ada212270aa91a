"""JSON there and back, with what it refuses."""

import datetime, decimal, json

RECORD = {"name": "\u017elu\u0165", "tags": ["a", None, True], "n": 1.5e300, "deep": {"er": [[[]]]}}


def more(value):
    if isinstance(value, datetime.date):
        return value.isoformat()
    raise TypeError(type(value).__name__)


text = json.dumps(RECORD, sort_keys=True, indent=1)
print(text)
print(json.loads(text) == RECORD, json.dumps(RECORD, ensure_ascii=False, separators=(",", ":")))
print(json.dumps({"when": datetime.date(2024, 2, 29)}, default=more))
print(json.loads("[0.1, 1e5]", parse_float=decimal.Decimal))
for bad in ("{", "[1,]", "nul", '{"a" 1}'):
    try:
        json.loads(bad)
    except json.JSONDecodeError as error:
        print(error)
