"""Compare trainings with a bug of the kind that ports from one framework to the other have."""
