"""The server of the live explorer: a worker for its computations, the run that it shows, and the requests it takes."""
