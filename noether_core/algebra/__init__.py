"""REDUCE, the algebra: the monoids over arrays, written once over a small `ops` argument (NumPy, jax.numpy or torch).

A monoid is an identity, a lift of one step's values, an associative merge and a last step that computes the numbers
(`noether_core.reduce.finish`). The same merge joins steps, accumulation steps, shards and resumed runs. What all the
reductions need of a key is in `Statistics`, a handful of vectors with one slot per key:

- sums of the finite values as expansions of about 100 bits (`expansion.py`), far more than the computed number has, so that
  it is the same for every order and split, and the correctly rounded one. Squares are summed about 0, not about a mean
  that would differ between the parts of a split: twice as many bits pay for the cancellation at the end;
- the least and the greatest finite value;
- how many values were NaN, +inf and -inf. Keeping them out of the sums keeps those finite; the end puts them back as
  IEEE 754 arithmetic would have had them, or leaves them out, as the config says;
- where the first of them was, as one number (`position.py`).

Between processes or devices the sums are added as integers (`limbs.py`), so that what is rounded is the exact total.

Laws, tested for every `ops`: merge(empty, a) = a; merge is commutative; what is computed of a merge does not depend on how
the values were grouped.
"""
