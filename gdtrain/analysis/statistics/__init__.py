"""What several seeds allow to be said: intervals, tests of pairs, survival and profiles."""
