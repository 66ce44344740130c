"""The stacked parameters of all members, their device mesh, and what runs over members."""
