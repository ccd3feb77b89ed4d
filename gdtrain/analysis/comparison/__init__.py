"""Several forms of gradient descent on one problem, measured."""
