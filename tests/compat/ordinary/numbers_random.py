"""Seeded generators are the same everywhere; statistics of what they give."""

import random, statistics

random.seed(20240229)
print([random.randrange(100) for _ in range(10)], random.random(), random.gauss(0, 1))
print(random.sample(range(1000), 5), random.choices("abc", [5, 1, 1], k=12))
cards = list(range(12))
random.shuffle(cards)
print(cards)
values = [random.expovariate(0.5) for _ in range(1000)]
print(statistics.fmean(values), statistics.median(values), statistics.quantiles(values, n=4))
print(statistics.correlation(range(10), [x * x for x in range(10)]), statistics.NormalDist(0, 1).cdf(1.96))
