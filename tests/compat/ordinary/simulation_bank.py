"""A small simulation with money, customers and a report, as people write them to learn."""

import collections, dataclasses, decimal, itertools, random


@dataclasses.dataclass
class Account:
    owner: str
    balance: decimal.Decimal = decimal.Decimal(0)
    history: list = dataclasses.field(default_factory=list)

    def move(self, amount):
        if self.balance + amount < 0:
            raise ValueError(f"{self.owner} has only {self.balance}")
        self.balance += amount
        self.history.append(amount)


random.seed(1)
accounts = [Account(name, decimal.Decimal(1000)) for name in ("Ada", "Bob", "Cy", "Di")]
refused = collections.Counter()
for _ in range(500):
    a, b = random.sample(accounts, 2)
    amount = decimal.Decimal(random.randrange(1, 40000)) / 100
    try:
        a.move(-amount)
    except ValueError:
        refused[a.owner] += 1
    else:
        b.move(amount)
for account in accounts:
    print(f"{account.owner:<4}{account.balance:>10.2f} {len(account.history):>4} {refused[account.owner]:>3}")
print(sum(a.balance for a in accounts), list(itertools.islice(accounts[0].history, 3)))
