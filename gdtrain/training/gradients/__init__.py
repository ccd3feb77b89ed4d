"""The gradient of a batch, exactly, however it is cut."""
