"""A whole run, from a configuration to a trained student and an honest comparison."""
