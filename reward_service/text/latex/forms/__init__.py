"""Forms of an answer with rules of their own: numbers in words, amounts in units, sums and integrals, congruences."""
