"""The reference: a token model of traffic, p(next tokens | tokens so far, map, lights), and its rollouts."""
