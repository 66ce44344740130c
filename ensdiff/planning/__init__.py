"""What a study will cost, from shapes and compiled programs alone."""
