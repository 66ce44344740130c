"""Parts of `experiments.device`: the steps, the clock that bounds them, and the report."""
