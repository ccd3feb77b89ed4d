"""Commands that train many runs to answer a question: compare, sweep and lr-range."""
