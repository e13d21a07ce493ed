"""Parts that attacks share: losses, steps, line searches and epsilon searches."""
