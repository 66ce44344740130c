"""The stacked parameters of all members, their device mesh, and the functions that run over members."""
