"""The loss as a function of the weights: gradient, Hessian, eigenvalues."""
