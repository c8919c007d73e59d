"""What the weight of the KL trades for what, by measurement."""
