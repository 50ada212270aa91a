"""Objects to bytes and back, by pickle, shelve, marshal and copy."""

import copy, marshal, pickle, shelve
from dataclasses import dataclass, field
from enum import Enum, Flag, auto


class Colour(Enum):
    RED = auto()
    BLUE = auto()


class Right(Flag):
    READ = auto()
    WRITE = auto()


@dataclass(order=True)
class Node:
    name: str
    colour: Colour = Colour.RED
    near: list["Node"] = field(default_factory=list, compare=False, repr=False)


a, b = Node("a"), Node("b", Colour.BLUE)
a.near.append(b)
b.near.append(a)
for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
    again = pickle.loads(pickle.dumps([a, b], protocol))
    print(protocol, again, again[0].near[0] is again[1])
print(copy.deepcopy(a).near[0].near[0], Right.READ | Right.WRITE, a < b)
with shelve.open("shelf") as shelf:
    shelf["x"] = [1, {"y": (2, 3)}]
with shelve.open("shelf") as shelf:
    print(dict(shelf))
print(marshal.loads(marshal.dumps((1, 2.5, "z", None))))
