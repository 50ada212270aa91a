"""Classes: properties, descriptors, slots, metaclasses, multiple inheritance, abstract bases, protocols."""

import abc, functools, typing


class Positive:
    def __set_name__(self, owner, name):
        self.name = "_" + name

    def __get__(self, thing, owner=None):
        return getattr(thing, self.name)

    def __set__(self, thing, value):
        if value <= 0:
            raise ValueError(f"{self.name[1:]} must be positive")
        setattr(thing, self.name, value)


class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...


@functools.total_ordering
class Square(Shape):
    side = Positive()

    def __init__(self, side):
        self.side = side

    def area(self):
        return self.side**2

    def __eq__(self, other):
        return self.side == other.side

    def __lt__(self, other):
        return self.side < other.side


class Registry(type):
    known = []

    def __new__(cls, name, bases, body):
        cls.known.append(name)
        return super().__new__(cls, name, bases, body)


class A(metaclass=Registry):
    __slots__ = ("x",)

    def who(self):
        return ["A"]


class B(A):
    def who(self):
        return ["B", *super().who()]


class C(A):
    def who(self):
        return ["C", *super().who()]


class D(B, C):
    pass


@typing.runtime_checkable
class HasArea(typing.Protocol):
    def area(self): ...


print(Square(3).area(), Square(2) < Square(3), Square(2) >= Square(3), isinstance(Square(1), HasArea))
for wrong in (lambda: Square(-1), Shape, lambda: setattr(A(), "y", 1)):
    try:
        wrong()
    except (ValueError, TypeError, AttributeError) as error:
        print(type(error).__name__, error)
print(Registry.known, D().who(), [c.__name__ for c in D.__mro__])
