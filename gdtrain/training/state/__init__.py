"""The state of a run: kept, taken, checked and put back."""
