"""From PyTorch's operators to jax: one function per operator, in a file for each subject."""
