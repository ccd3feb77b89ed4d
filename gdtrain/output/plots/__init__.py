"""Pictures of runs."""

MADE_BY = "gdtrain, with Matplotlib"  # written into every picture
