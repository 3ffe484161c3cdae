"""A package of its own: it brings a policy, a simulator, an estimator and a loss."""
