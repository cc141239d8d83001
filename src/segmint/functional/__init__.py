"""Pure functions of tensors, each tested in closed form."""
