"""The meta objective: the simulated attack, its gradient, and the training loop of Algorithm 1."""
