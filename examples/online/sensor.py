"""Prints what a sensor measures, a line at a time: y = 2 a - b, and a little noise."""

import random
import sys

draw = random.Random(0)
print("a,b,y")
for _ in range(int(sys.argv[1])):
    a, b = draw.gauss(0, 1), draw.gauss(0, 1)
    print(f"{a:.6f},{b:.6f},{2 * a - b + draw.gauss(0, 0.1):.6f}")
