"""How fast and how well methods learn: rounds, mixing, stragglers."""
