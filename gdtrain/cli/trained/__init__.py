"""Commands that use a trained run: predict, evaluate, export, plot and landscape."""
