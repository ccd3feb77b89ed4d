"""Random training programs, run by gdtrain and by a plain PyTorch loop, and compared."""
