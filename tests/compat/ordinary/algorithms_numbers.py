"""Primes, greatest divisors, big powers, and the digits of e."""

import math
from itertools import count, islice


def primes():
    composites = {}
    for n in count(2):
        if n not in composites:
            yield n
            composites[n * n] = [n]
        else:
            for p in composites.pop(n):
                composites.setdefault(n + p, []).append(p)


def e_digits(n):
    total = term = 10 ** (n + 10)
    for k in count(1):
        term //= k
        if not term:
            return str(total // 10**10)
        total += term


print(list(islice(primes(), 40)))
print(math.gcd(2**40 - 1, 2**60 - 1), math.lcm(*range(1, 30)), pow(3, 10**6, 10**9 + 7))
print(e_digits(200))
print(math.isqrt(10**50), math.comb(100, 50), math.factorial(60) % 1_000_003)
