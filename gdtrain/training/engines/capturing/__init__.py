"""One update captured as a graph of operators: what the compiled engines have in common."""
