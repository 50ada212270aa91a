"""Exact numbers: decimals with a context, fractions, and floats that are not."""

import decimal, fractions, math
from decimal import Decimal as D

with decimal.localcontext(prec=60) as context:
    print(D(2).sqrt(), D(1) / 7, D(1).exp())
    context.rounding = decimal.ROUND_HALF_EVEN
    print([str(D(x).quantize(D("0.1"))) for x in ("0.25", "0.35", "-2.45")])
try:
    D(1) / 0
except decimal.DivisionByZero as error:
    print(type(error).__name__)
print(0.1 + 0.2, D("0.1") + D("0.2"), fractions.Fraction("0.1") + fractions.Fraction(1, 3))
print(fractions.Fraction(math.pi).limit_denominator(1000), round(2.5), round(-1.5), round(2.675, 2))
print(math.fsum([0.1] * 10), math.nextafter(1, 2), math.inf - math.inf, -0.0)
print(math.sin(1e6), math.gamma(7.5), math.log1p(1e-10), math.hypot(3, 4, 12), math.erf(0.5))
