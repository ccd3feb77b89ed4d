"""What keeps a run from going wrong unseen, and says why it did."""
