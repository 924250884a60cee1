"""How a term's weight changes over a training: a factor for every step."""
