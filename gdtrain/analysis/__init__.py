"""What a researcher asks of a model, a loss and data, beside training them."""
